"""Triton's interpreter made faithful."""


def install() -> None:
    pass
