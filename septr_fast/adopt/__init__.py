"""What others have, taken over: models of the original class, checkpoints, the Hugging Face Hub.

It imports the model, `septr_fast.audio`, and what lies below them.
"""
