"""A driver without a device: what Triton's own launcher asks of it is answered, and every launch is written down."""
