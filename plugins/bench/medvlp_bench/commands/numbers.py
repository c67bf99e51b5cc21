"""Numbers of a command line that have a range. Light."""

from __future__ import annotations

import argparse


def share(text: str) -> float:
    """A number S with 0 < S <= 1."""
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 < S <= 1")
    return value


def count(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value
