"""A saved model's answers: the classes of recordings, and what it looks at.

It imports `septr_fast.adopt`, `septr_fast.audio`, `septr_fast.report` for drawing, and what lies below them.
"""
