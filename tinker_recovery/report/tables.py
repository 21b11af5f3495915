"""Tables: the charts' data, for reading and for screen readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tinker_recovery.report.html import Markup, tag

_HALF_A_CARD = 26
"""Characters that fit into half the width of a card."""


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numeric: Sequence[int] = (),
    name: str | None = None,
    prose: bool = False,
) -> Markup:
    """A table; where the page is too narrow for it, its rows are cards.

    Args:
        caption: What it is, for screen readers.
        heads: The headings of its columns.
        rows: The cells of each row; the first is the row's heading.
        numeric: Columns to set flush right.
        name: Prefix of each row's id, before the row's number.
        prose: Whether cells may wrap.
    """
    rows = list(rows)
    broad = {
        index
        for index, head in enumerate(heads)
        if any(len(head) + len(str(row[index])) > _HALF_A_CARD for row in rows)
    }

    def cell(kind: str, index: int, value: object, scope: str | None) -> Markup:
        kinds = ["number"] if index in numeric else []
        kinds += ["broad"] if kind == "td" and index in broad else []
        # On a card each value has its heading beside it.
        return tag(
            kind,
            value,
            scope=scope,
            class_=" ".join(kinds) or None,
            data_head=None if kind == "th" and scope == "col" else heads[index],
        )

    body = [
        tag(
            "tr",
            *(
                cell("th" if index == 0 else "td", index, value, "row" if index == 0 else None)
                for index, value in enumerate(row)
            ),
            id=f"{name}-{number}" if name else None,
        )
        for number, row in enumerate(rows, 1)
    ]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", *(cell("th", n, each, "col") for n, each in enumerate(heads)))),
            tag("tbody", *body),
            class_=None if prose else "dense",
        ),
        class_="scrolls",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def folded(summary: str, *content: object) -> Markup:
    """Content that is shown on demand."""
    return tag("details", tag("summary", summary), *content)
