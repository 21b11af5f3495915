"""Which runs ``watch`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinker_recovery.cli.watch.rows import RunRow


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which runs to show.

    Attributes:
        run: The name of the one run; None for all.
        service: Base URL of their service; None for any.
        states: Their states; empty for any.
        named: Whether only those with a name of their own.
    """

    run: str | None = None
    service: str | None = None
    states: frozenset[str] = frozenset()
    named: bool = False

    @property
    def only_some(self) -> bool:
        """Whether some runs of the source may not be among them."""
        return bool(self.states) or self.named

    def shows(self, row: RunRow) -> bool:
        """Whether a run of the source is among them, now."""
        return (row.named or not self.named) and (not self.states or row.state in self.states)
