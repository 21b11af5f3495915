"""Tables: what the charts show, for those who read or listen instead."""

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
    """A table that scrolls by itself where the page is too narrow for it.

    Args:
        caption: What it is; shown to those who listen.
        heads: Of its columns.
        rows: Their cells, each row's first of them its name.
        numeric: Columns set flush right.
        prose: Its cells may be broken into lines.
        name: Begins the id of each row, its number at the end.
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
    """Content that opens on demand."""
    return tag("details", tag("summary", summary), *content)
