"""Lines for a terminal, which are wrapped or cut between two words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tinker_recovery.telemetry.text import as_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_INDENT = "    "
_WORD = re.compile(r"\s*\S+")


def say(console: Console, text: str) -> None:
    """Print lines: wrapped between words in a terminal, and as they are elsewhere.

    A word longer than the terminal's width, such as a path, stays whole, and can be copied.
    """
    text = as_text(text, lines=True)
    if console.is_terminal:
        text = "\n".join(wrapped(text, console.width))
    console.print(text, soft_wrap=True)


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, of which further ones are indented; no word of it is split."""
    from rich.cells import cell_len

    lines: list[str] = []
    for whole in text.split("\n"):
        line = ""
        for word in _WORD.findall(whole):
            if line and cell_len(line) + cell_len(word) > width:
                lines.append(line)
                line = _INDENT + word.lstrip()
            else:
                line += word
        lines.append(line)
    return lines


def cut(line: Text, width: int) -> None:
    """Shorten a line to a width, at the end of a word, with an ellipsis that says so.

    Within a word only where the last one that fits would leave half of the room empty.
    """
    if line.cell_len <= width:
        return
    line.truncate(width - 1)
    kept = line.plain
    end = kept.rfind(" ")
    if end * 2 >= len(kept):
        line.right_crop(len(kept) - len(kept[:end].rstrip()))
    line.append("…")
