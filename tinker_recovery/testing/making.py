"""The model of a run, made again from what the run says of itself."""

from __future__ import annotations

import functools
from typing import Any

from tinker_recovery.testing.checkpoints import Checkpoints
from tinker_recovery.testing.model import BigramLora
from tinker_recovery.testing.runs import ServiceError
from tinker_recovery.testing.store import DamagedCheckpoint


def beginning(facts: dict[str, Any], checkpoints: Checkpoints) -> BigramLora:
    """The model a run began with, to the bit.

    Raises:
        ServiceError: 404 if the checkpoint it was loaded from is gone.
        DamagedCheckpoint: It cannot be read.
    """
    model = _blank(facts)
    if facts["parent"] is not None:
        parent = checkpoints.find(facts["parent"])
        checkpoints.restore(parent, model, optimizer=facts["optimizer"])
    if facts.get("perturbed"):
        model.perturb()
    return model


def rolled_back(facts: dict[str, Any], checkpoints: Checkpoints) -> BigramLora | None:
    """The model in a run's last checkpoint, or at its beginning; None if neither can be read."""
    last = checkpoints.last(facts["run_id"], functools.partial(_blank, facts))
    if last is not None:
        return last
    try:
        return beginning(facts, checkpoints)
    except (ServiceError, DamagedCheckpoint):
        return None


def _blank(facts: dict[str, Any]) -> BigramLora:
    return BigramLora(facts["base_model"], rank=facts["rank"], seed=facts["seed"])
