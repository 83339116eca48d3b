"""A GPU that is not here: what Triton's own launcher asks of its driver is answered, and models compare as on one."""
