"""Compiled kernels, judged by their code."""
