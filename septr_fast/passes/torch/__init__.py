"""The backend in plain PyTorch, for every device; training on a CPU has a backward pass of its own."""
