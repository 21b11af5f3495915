"""Where an optimizer step ends: what the loop has set by then, and the questions about its save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tinker_recovery.checkpoints import SaveLedger

ASK_AGAIN_S = 0.1
"""Seconds after which a schedule that goes by the clock is asked once more about the same step."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """What the loop has set by the end of an optimizer step; its state as JSON."""

    epoch: int
    loop_state: str | None
    metrics: Mapping[str, float] = field(compare=False)


class Asked(NamedTuple):
    """What a schedule was asked by that said no: it is asked twice in each step."""

    step: int
    end: bool
    now_s: float
    standing: Boundary
    ledger: SaveLedger

    def answers(self, other: Asked) -> bool:
        """Whether it would say no again: only the clock has gone on, by less than matters."""
        return (
            self.step == other.step
            and self.end == other.end
            and other.now_s < self.now_s + ASK_AGAIN_S
            and self.standing.epoch == other.standing.epoch
            and self.standing.metrics is other.standing.metrics
            and self.ledger is other.ledger
        )
