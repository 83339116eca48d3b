"""The backend on Triton kernels, and the launch configurations that a user has measured."""
