"""What ``watch`` says in a terminal until it has something to show."""

from __future__ import annotations

import os
import sys

import click

_ERASE = "\r\x1b[2K"


class Beginning:
    """A line that stands in the terminal from the start until the first view takes its place.

    Nothing is said where standard output is no terminal, or one that cannot erase.

    Args:
        events: Whether events are read; else it is a journal.
        shown: Whether anyone looks at it.
    """

    def __init__(self, *, events: bool, shown: bool) -> None:
        dumb = os.environ.get("TERM", "dumb") in {"dumb", "unknown"}
        self._stands = shown and not dumb and sys.stdout.isatty()
        if self._stands:
            click.echo(f"reading the {'events' if events else 'journal'} ...", nl=False)
            sys.stdout.flush()

    def over(self) -> None:
        """Erase it, if it still stands."""
        if self._stands:
            self._stands = False
            click.echo(_ERASE, nl=False, color=True)
