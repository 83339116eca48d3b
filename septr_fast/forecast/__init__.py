"""How long a model should take on a GPU that is not here, from what its kernels were compiled to: a forecast."""
