"""The seam: one transformer along one axis of the token grid, checked, then handed to a backend.

It takes folded weights, never a model: it imports `septr_fast.algebra`, the kernels and `septr_fast.reference`.
"""
