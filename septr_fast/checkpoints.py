"""Checkpoints under their public name; see `septr_fast.adopt.checkpoints`."""

from septr_fast.adopt.checkpoints import VERSION, Bundle, load, save
from septr_fast.adopt.description import constructor_arguments

__all__ = ["VERSION", "Bundle", "constructor_arguments", "load", "save"]
