"""The Hugging Face Hub under its public name; see `septr_fast.adopt.hub`. It needs the extra `hub`."""

from septr_fast.adopt.hub import SepTr

__all__ = ["SepTr"]
