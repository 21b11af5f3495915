"""Text of others, shown as the text it is."""

from __future__ import annotations

import unicodedata


def as_text(text: str, *, lines: bool = False) -> str:
    r"""A text in which everything can be seen: what a terminal would act on is its escape.

    That is every control character (``\x1b``), and what turns or hides the text around it. What it
    has returned is returned as it is.

    Args:
        text: Any text.
        lines: Whether a line may end in it; else that is an escape as well.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or (lines and each == "\n") else _escape(each) for each in text
    )


def counted(count: int, noun: str) -> str:
    """A number with its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def seconds(value: float) -> str:
    """Seconds in three digits, or all of them before the point."""
    return f"{value:.3g} s" if value < 999.5 else f"{value:,.0f} s"  # noqa: PLR2004 - what three digits show as 1e+03


def is_are(count: int) -> str:
    """The verb behind a number with its noun."""
    return "is" if count == 1 else "are"


def _escape(character: str) -> str:
    if unicodedata.category(character) == "Zs":
        return " "  # one of the wider spaces
    return character.encode("unicode_escape").decode("ascii")
