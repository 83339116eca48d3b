"""The exact algebra: folded weights, one file for each formulation, the plan, and folded weights kept between calls.

It reads the modules of `septr_fast.reference` and imports nothing else of this package.
"""
