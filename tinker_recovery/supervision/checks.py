"""Checks of single values, with errors that say what is allowed."""

from __future__ import annotations

import math
from typing import get_args

from tinker_recovery.supervision.errors import SpecError


def number(field: str, value: object, allowed: str) -> float:
    """The value as a float, if it is a finite number.

    Raises:
        SpecError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SpecError(field, value, allowed)
    return float(value)


def one_of(field: str, value: object, choice: object) -> None:
    """Refuse what is not among the values of a Literal.

    Raises:
        SpecError: It is not one of them.
    """
    allowed = get_args(choice)
    if value not in allowed:
        raise SpecError(field, value, f"one of {', '.join(map(repr, allowed))}")


def text(field: str, value: object) -> None:
    """Refuse what is not a string, and the empty one.

    Raises:
        SpecError: It is one of these.
    """
    if not isinstance(value, str) or not value:
        raise SpecError(field, value, "a string that is not empty")


def whole(field: str, value: object) -> None:
    """Refuse what is not a whole number from 0.

    Raises:
        SpecError: It is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SpecError(field, value, "a whole number, 0 or more")
