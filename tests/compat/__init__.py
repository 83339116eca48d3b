"""Other versions of PyTorch: an environment for each, what runs in it, and the table of docs/versions.md.

It imports nothing of the package; `make compat` runs it.
"""
