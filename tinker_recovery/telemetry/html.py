"""Tables of HTML for notebooks: all text is escaped, and freed of secrets."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tinker_recovery.telemetry.redaction import redact
from tinker_recovery.telemetry.text import as_text


def shown(value: object) -> str:
    """A value as a notebook shows it."""
    if value is None or value == "":
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return escape(as_text(redact(text)), quote=True)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with a title; of rows without a head, the first cell is the name of the others."""
    top = "".join(f'<th style="text-align:left">{shown(name)}</th>' for name in head)
    body = "".join(
        "<tr>"
        + "".join(
            f'<{tag} style="text-align:left">{shown(cell)}</{tag}>'
            for at, cell in enumerate(row)
            for tag in ("th" if not head and not at else "td",)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f"<div><b>{shown(title)}</b><table>"
        + (f"<thead><tr>{top}</tr></thead>" if head else "")
        + f"<tbody>{body}</tbody></table></div>"
    )
