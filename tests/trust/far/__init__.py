"""Tensors of more than 2³¹ elements."""
