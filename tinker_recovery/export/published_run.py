"""What the Publisher asks of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tinker_recovery.checkpoints import Segment
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.service.guard import Guard


class PublishedRun(Protocol):
    """A run as publishing sees it."""

    name: str
    """Its name."""
    lineage: str
    """Id of the logical run."""
    guard: Guard
    """Its claim at the service."""

    @property
    def segments(self) -> Sequence[Segment]:
        """Every Tinker run it has lived in, oldest first."""
        ...

    @property
    def checkpoints(self) -> CheckpointState:
        """What is known of its checkpoints."""
        ...

    @property
    def base_model(self) -> str | None:
        """What it trains on, as far as that is known."""
        ...

    @property
    def recovering(self) -> bool:
        """Whether it is being recovered."""
        ...

    @property
    def over(self) -> bool:
        """Whether it is over, well or not."""
        ...

    @property
    def finished(self) -> bool:
        """Whether it has come to its end, and not to that of an error."""
        ...

    @property
    def saved_metrics(self) -> Mapping[tuple[str, int], Mapping[str, float]]:
        """What was reported with each save, by attempt and step."""
        ...

    @property
    def recovered(self) -> int:
        """How often it was recovered."""
        ...
