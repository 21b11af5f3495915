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


def chart(
    key: str,
    caption: str,
    description: str,
    height: int,
    *content: object,
    controls: Markup | None = None,
) -> Markup:
    """A chart with its name and description for screen readers.

    Args:
        key: The prefix of its ids, and its class.
        caption: Its name, shown above it.
        description: What it shows, in a sentence or two.
        height: Pixels.
        *content: The elements.
        controls: What stands between its name and the picture.
    """
    return joined(
        tag("figcaption", caption, id=f"{key}-name"),
        controls or "",
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


def marks(places: Sequence[float], y: float, words: Sequence[str]) -> Markup:
    """The numbers of incidents, from 1 on; where they would overlap, one mark for several.

    Drawn twice: for a wide page and for a narrow one, of which the style shows one.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = []
    for kind, apart in (("wide", _APART), ("narrow", _NARROW_APART)):
        for first, end in clusters([places[index] for index in order], apart):
            members = sorted(order[first:end])
            place = sum(places[index] for index in members) / len(members)
            title = "; ".join(words[index] for index in members)
            found.append(_mark(place, y, _numbers(members), title, kind))
    return joined(*found)


def clusters(places: Sequence[float], apart: float) -> list[tuple[int, int]]:
    """Rising places of which none is as near as ``apart`` to the next range, as index ranges.

    A range is not much longer than its mark: it would stand far from what it is about.
    """
    found: list[tuple[int, int]] = []
    begin = 0
    for index in range(1, len(places) + 1):
        room = apart * (1.0 if index - begin == 1 else _WIDER)
        if (
            index == len(places)
            or places[index] - places[index - 1] >= room
            or places[index] - places[begin] >= _LONGEST * apart
        ):
            found.append((begin, index))
            begin = index
    return found


def _numbers(members: Sequence[int]) -> str:
    first, last = members[0] + 1, members[-1] + 1
    if first == last:
        return str(first)
    return f"{first}-{last}" if last - first == len(members) - 1 else f"{len(members)}x"


def _mark(place: float, y: float, label: str, words: str, kind: str) -> Markup:
    half = 8 if len(label) < 3 else 4 + 3.2 * len(label)  # noqa: PLR2004 - digits in a circle
    shape = tag("rect", x=-half, y=-8, width=2 * half, height=16, rx=8)
    at = tag("svg", shape, tag("text", label, y=3.5), x=percent(place), y=y, overflow="visible")
    return tag("g", tag("title", words), at, class_=f"mark {kind}")


_APART, _NARROW_APART = 1.8, 7.0
"""A mark's width in per cent of a wide page, and of a narrow one."""
_WIDER, _LONGEST = 1.6, 2.5
"""A mark of several, and the longest range that is one, in widths of a mark."""


def key(*entries: tuple[str, str]) -> Markup:
    """What the colours mean: pairs of a class and its meaning."""
    return tag(
        "ul",
        *(tag("li", tag("span", class_=f"swatch {name}"), words) for name, words in entries),
        class_="key",
        aria_hidden="true",
    )
