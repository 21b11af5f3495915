"""What the three charts share. Places across are percentages, so that text keeps its size.

A chart has no ``viewBox``: it is as wide as the page lets it be, its lines and labels are placed by
per cent of that, and only a curve is stretched, with strokes that are not.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinker_recovery.report.html import Markup, joined, tag


def percent(place: float) -> str:
    """A place across, of 0 to 100."""
    return f"{place:.3f}%"


def chart(key: str, caption: str, description: str, height: int, *content: object) -> Markup:
    """A chart with its name and description for those who do not see it.

    Args:
        key: Of its ids; a constant of ours.
        caption: Its name, shown above it.
        description: What is to be seen, in a sentence or two.
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

    A label that would stand in another's way on a narrow page is marked as ``spare``.
    """
    lines = []
    for index, (place, label) in enumerate(places):
        at = percent(place)
        spare = "spare" if index % 2 else None
        lines.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid"))
        lines.append(tag("text", label, x=at, y=bottom + 18, class_=f"tick {spare or ''}".strip()))
    return joined(*lines)


def mark(place: float, y: float, number: int, words: str, room: str) -> Markup:
    """The number of an incident, in a circle, with what it was on hovering."""
    at = percent(place)
    return tag(
        "g",
        tag("title", words),
        tag("circle", cx=at, cy=y, r=8),
        tag("text", str(number), x=at, y=y + 3.5),
        class_=f"mark {room}".strip(),
    )


def rooms(places: Sequence[float]) -> list[str | None]:
    """Whether marks have room for their number: None, or ``spare`` if a narrow page has none."""
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
"""Per cent that a circle takes of a wide page, and of a narrow one."""


def key(*entries: tuple[str, str]) -> Markup:
    """What the colours mean: pairs of a class and words."""
    return tag(
        "ul",
        *(tag("li", tag("span", class_=f"swatch {name}"), words) for name, words in entries),
        class_="key",
        aria_hidden="true",
    )
