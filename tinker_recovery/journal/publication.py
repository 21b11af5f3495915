"""What the journal notes of a checkpoint that is being exported or published, before it is begun.

As long as the note is there, retention keeps the checkpoint, and the next process goes on with what
a killed one had begun.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from tinker_recovery.journal.holder import Holder


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """An intention: a checkpoint is to be exported, and perhaps published.

    Attributes:
        path: The checkpoint.
        run: The run's name.
        lineage: Its lineage id.
        step: Optimizer steps in the checkpoint; None if that is not known.
        value: The metric that it was chosen by, where it was; None otherwise.
        base_model: What the run trains on.
        metrics: What the loop had reported at that step.
        recoveries: How often the run had been recovered.
        repository: Where to publish it; None for an export alone.
        format: How it is stored.
        mode: Whether a smaller or larger ``value`` is better.
        holder: The process that is at it.
    """

    path: str
    run: str
    lineage: str
    step: int | None
    value: float | None = None
    base_model: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    recoveries: int | None = None
    repository: str | None = None
    format: str = "safetensors"
    mode: str = "min"
    holder: Holder

    def said(self) -> str:
        """As it is noted."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def read(cls, said: str) -> Self | None:
        """What was noted; None if another version noted something else."""
        try:
            facts: dict[str, Any] = json.loads(said)
            return cls(**{**facts, "holder": Holder(**facts["holder"])})
        except (ValueError, TypeError, KeyError):
            return None

    @property
    def keeps(self) -> bool:
        """Whether its checkpoint has to be kept: somebody is at it, or is to go on with it."""
        return self.repository is not None or self.holder.lives() is not False


def kept_for_export(publications: Mapping[str, str]) -> dict[str, str]:
    """The checkpoints that are kept for an export, each with the reason, from what is noted."""
    found = {path: Publication.read(said) for path, said in publications.items()}
    return {
        path: "it is being exported"
        if each is None or not each.repository
        # Not done yet, whoever is at it.
        else f"it is to be published in {each.repository}"
        for path, each in found.items()
        if each is None or each.keeps
    }
