"""Compiled kernels executed on a CPU, from the PTX that Triton emits; imports nothing of the package but `launches`."""
