"""Drawn cases of operators, passes and models."""
