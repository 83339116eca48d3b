"""Checkpoints under their public name; see `septr_fast.adopt.checkpoints`."""

from septr_fast.adopt.checkpoints import VERSION, Bundle, constructor_arguments, load, save

__all__ = ["VERSION", "Bundle", "constructor_arguments", "load", "save"]
