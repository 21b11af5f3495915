"""HTML from values: all text is escaped and freed of secrets unless :func:`tag` made it."""

from __future__ import annotations

from html import escape
from typing import Final

from tinker_recovery.report.words import plain

_VOID: Final = frozenset({"br", "input", "meta"})

Attribute = str | float | bool | None


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as HTML: markup unchanged, anything else as escaped text."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(plain(str(value)), quote=True))


def joined(*values: object) -> Markup:
    """Several values, one after the other."""
    return Markup("".join(map(text, values)))


def tag(name: str, /, *content: object, **attributes: Attribute) -> Markup:
    """An element of HTML or SVG.

    Args:
        name: Its name; never escaped, so always a constant.
        *content: What is in it; escaped unless it is markup.
        **attributes: By name, with ``_`` for ``-``; a ``_`` at the end is dropped (``class_``).
            None and False leave the attribute out; True gives it no value.
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.removesuffix("_").replace("_", "-")  # noqa: PLW2901 - Python's spelling becomes HTML's
        if value is None or value is False:
            continue
        parts.append(key if value is True else f'{key}="{_value(value)}"')
    opened = f"<{' '.join(parts)}>"
    return Markup(opened) if name in _VOID else Markup(f"{opened}{joined(*content)}</{name}>")


def _value(value: Attribute) -> str:
    return f"{value:.6g}" if isinstance(value, float) else text(value)
