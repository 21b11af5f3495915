"""Tables: the charts' data, for reading and for screen readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tinker_recovery.report.html import Markup, tag


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numeric: Sequence[int] = (),
    name: str | None = None,
    prose: bool = False,
) -> Markup:
    """A table that scrolls where the page is too narrow for it.

    Args:
        caption: What it is, for screen readers.
        heads: The headings of its columns.
        rows: The cells of each row; the first is the row's heading.
        numeric: Columns to set flush right.
        name: Prefix of each row's id, before the row's number.
        prose: Whether cells may wrap.
    """

    def cell(kind: str, index: int, value: object, scope: str | None) -> Markup:
        return tag(kind, value, scope=scope, class_="number" if index in numeric else None)

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
