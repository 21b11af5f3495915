"""What the three charts share.

A chart has no ``viewBox``: it is as wide as the page, and horizontal coordinates are percentages of
that, so text keeps its size. Only the loss curve is stretched, with strokes that are not.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinker_recovery.report.html import Markup, joined, tag


def percent(place: float) -> str:
    """A horizontal coordinate from 0 to 100."""
    return f"{place:.3f}%"


def chart(key: str, caption: str, description: str, height: int, *content: object) -> Markup:
    """A chart with its name and description for screen readers.

    Args:
        key: The prefix of its ids, and its class.
        caption: Its name, shown above it.
        description: What it shows, in a sentence or two.
        height: Pixels.
        *content: The elements.
    """
    return joined(
        tag("figcaption", caption, id=f"{key}-name"),
        tag(
            "svg",
            tag("desc", description, id=f"{key}-description"),
            *content,
            class_=f"chart {key}",
            role="img",
            aria_labelledby=f"{key}-name {key}-description",
            height=height,
            width="100%",
        ),
    )


def across(places: Sequence[tuple[float, str]], *, top: float, bottom: float) -> Markup:
    """The axis at the bottom: a grid line and a label at each place.

    Every other label is ``spare``: hidden on a narrow page.
    """
    lines = []
    for index, (place, label) in enumerate(places):
        at = percent(place)
        kind = "tick spare" if index % 2 else "tick"
        lines.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid"))
        lines.append(tag("text", label, x=at, y=bottom + 18, class_=kind))
    return joined(*lines)


def mark(place: float, y: float, number: int, words: str, room: str) -> Markup:
    """The number of an incident, in a circle; ``words`` show on hovering."""
    at = percent(place)
    return tag(
        "g",
        tag("title", words),
        tag("circle", cx=at, cy=y, r=8),
        tag("text", str(number), x=at, y=y + 3.5),
        class_=f"mark {room}".strip(),
    )


def rooms(places: Sequence[float]) -> list[str | None]:
    """Whether each mark has room: None if not, ``spare`` if not on a narrow page, else empty."""
    shown: list[str | None] = []
    last = last_narrow = float("-inf")
    for place in places:
        if abs(place - last) < _APART:
            shown.append(None)
            continue
        last = place
        narrow = abs(place - last_narrow) >= _NARROW_APART
        last_narrow = place if narrow else last_narrow
        shown.append("" if narrow else "spare")
    return shown


_APART, _NARROW_APART = 1.8, 6.5
"""A circle's width in per cent of a wide page, and of a narrow one."""


def key(*entries: tuple[str, str]) -> Markup:
    """What the colours mean: pairs of a class and its meaning."""
    return tag(
        "ul",
        *(tag("li", tag("span", class_=f"swatch {name}"), words) for name, words in entries),
        class_="key",
        aria_hidden="true",
    )
