"""Sweeps over many cases of one kind: a few of them in every run, all of them with SWEEP=all.

All of them take a third of the suite's time. Which few is fixed, so a failure can be repeated.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


def sweep(cases: Iterable[_T], few: int) -> list[_T]:
    """So many of the cases, evenly apart, the first and the last among them."""
    every = list(cases)
    if os.environ.get("SWEEP") == "all" or few >= len(every):
        return every
    if few == 1:
        return every[:1]
    return [every[round(place * (len(every) - 1) / (few - 1))] for place in range(few)]


def pairs(one: Iterable[Any], other: Iterable[Any], few: int) -> list[tuple[Any, Any]]:
    """A sweep over every pair."""
    return sweep(itertools.product(one, other), few)
