"""Checks of single values; each raises a SpecError that says what is allowed."""

from __future__ import annotations

import math
from typing import get_args

from tinker_recovery.supervision.errors import SpecError


def number(field: str, value: object, allowed: str) -> float:
    """The value as a float; it has to be a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SpecError(field, value, allowed)
    return float(value)


def one_of(field: str, value: object, choice: object) -> None:
    """Check that it is one of the values of a Literal."""
    allowed = get_args(choice)
    if value not in allowed:
        raise SpecError(field, value, f"one of {', '.join(map(repr, allowed))}")


def text(field: str, value: object) -> None:
    """Check that it is a non-empty string."""
    if not isinstance(value, str) or not value:
        raise SpecError(field, value, "a non-empty string")


def whole(field: str, value: object) -> None:
    """Check that it is a whole number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SpecError(field, value, "a whole number, 0 or more")
