"""Kernels for other machines: compiled without a GPU, reported on, measured and tuned on one.

It imports the model and what lies below it. Nothing of it is needed to run a model.
"""
