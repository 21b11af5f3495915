"""A run as the Publisher sees it, and the Publisher as retention does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tinker_recovery.checkpoints import Segment
from tinker_recovery.export.publisher import Publisher
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators

if TYPE_CHECKING:
    from tinker_recovery.run.supervised import SupervisedRun


class PublishedView:
    """What :class:`~tinker_recovery.export.publisher.PublishedRun` asks for.

    Args:
        run: The run.
    """

    def __init__(self, run: SupervisedRun) -> None:
        self._run = run
        self.name, self.lineage = run.name, run.lineage
        self.guard = run.guard

    @property
    def segments(self) -> Sequence[Segment]:
        """Every Tinker run it has lived in."""
        return self._run.segments

    @property
    def checkpoints(self) -> CheckpointState:
        """What is known of its checkpoints."""
        return self._run.checkpoints

    @property
    def base_model(self) -> str | None:
        """What it trains on, as far as that is known."""
        return self._run.weights.base_model or getattr(self._run.origin, "base_model", None)

    @property
    def recovering(self) -> bool:
        """Whether it is being recovered, and not over."""
        return self._run.recovering and not self._run.ended

    @property
    def over(self) -> bool:
        """Whether it is over, well or not."""
        return self._run.ended

    @property
    def finished(self) -> bool:
        """Whether it has come to its end, and not to that of an error."""
        current = self._run.current
        return self._run.ended and current is not None and current.finished

    @property
    def saved_metrics(self) -> Mapping[tuple[str, int], Mapping[str, float]]:
        """What was reported with each save, by attempt and step."""
        return self._run.history.saved

    @property
    def recovered(self) -> int:
        """How often it was recovered."""
        return len(self._run.recoveries)


class Publishing:
    """What retention has to do with the Publisher: tell it what has changed, keep what it needs.

    Args:
        collaborators: What it works with.
    """

    def __init__(self, collaborators: Collaborators) -> None:
        self._publisher = Publisher(collaborators)
        self.children = self._publisher.children
        self.settle = self._publisher.settle
        self.aclose = self._publisher.aclose

    def ask(self, run: SupervisedRun) -> None:
        """Something has changed."""
        self._publisher.ask(PublishedView(run))

    async def let_go(self, run: SupervisedRun) -> None:
        """Before a collection: what was to be published by an earlier policy keeps nothing."""
        await self._publisher.let_go(PublishedView(run))

    def keeps(self, run: SupervisedRun) -> Mapping[str, str]:
        """What must not be deleted: path to reason."""
        return self._publisher.keeps(PublishedView(run))
