"""What a service does, in one word each, and what can be promised there. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tinker_recovery.doctor.comparison import ALLOWANCE, CLEAR, Diagnosis, OptimizerFinding
from tinker_recovery.telemetry import redact

NOT_TRIED = "not tried"
CANNOT_TELL = "cannot tell"
FAILED = "failed"

MOST = 120
"""Characters of an error that are shown."""

_OPEN = "Nothing is known of it, so nothing is promised that rests on it."

_PROMISES: Mapping[str, Mapping[str, str]] = {
    "weights restored": {
        "yes": "A recovered run has the weights that were saved.",
        "within noise": "A recovered run has the weights that were saved, as far as answers tell.",
        "no": "Recovery cannot be relied on here.",
        CANNOT_TELL: "The answers are no numbers, so nothing is known of the weights.",
    },
    "optimizer restored": {
        "yes": "A recovered run takes the same next step as an undisturbed one.",
        "within noise": "A recovered run is as exact as the service is.",
        "inexactly": "A recovered run continues, but not exactly.",
        "no": "Each recovery starts the optimizer from zero; the weights are right.",
        CANNOT_TELL: "The optimizer's part of a step is hidden by noise: try more --steps.",
    },
    "seed honoured": {
        "yes": "A run that starts over begins from the same weights.",
        "no": "Starting over is exact only from the checkpoint that save_at_start makes.",
        CANNOT_TELL: "Noise hides it; rely on the checkpoint that save_at_start makes.",
    },
    "metadata of saves": {
        "kept": "Runs are found and continued from the service's listing alone.",
        "forgotten": "Position and run are known from the journal and the checkpoints' names.",
        "refused": "Saves are made without; the journal and the checkpoints' names tell the rest.",
    },
    "user's names kept": {
        "yes": "A checkpoint's name tells its step, attempt and run.",
        "no": "Where metadata is not kept either, only the journal knows what a checkpoint is.",
    },
    "overwriting a name": {
        "replaces": "A checkpoint of the loop's own that is saved over is restored only as listed.",
        "refused": "No save of the loop's own replaces a checkpoint that was listed.",
    },
    "sizes listed": {
        "yes": "A checkpoint that changes its size is rejected before it is loaded.",
        "no": "A changed size cannot be seen; a damaged checkpoint shows when it is loaded.",
    },
    "export": {
        "yes": "The bytes of checkpoints can be verified (verify --deep, verify_deep).",
        "missing": "Bytes cannot be verified; with verify_deep nothing is deleted.",
    },
    "finish": {
        "yes": "Sessions are ended at once, those of dead processes as well.",
        "missing": "Sessions stay open until the service's own timeout ends them.",
    },
    "search of sessions": {
        "yes": "A session that failed is noticed within one poll.",
        "missing": "A failed session is noticed by a failed call or the run's status alone.",
    },
    "one trainer": {
        "on any machine": 'With lease="both" one process at most trains a named run, anywhere.',
        "listed late": 'With lease="both" one process at most trains a named run, if sessions are '
        "listed in the order in which they are opened.",
        "claims alone": "Machines wait for each other, but a process that was paused can train "
        "beside its successor until its next heartbeat.",
        "by the journal": "Processes that share no journal can train one named run at once.",
        "no": "A process that was replaced can train on: do not start a named run twice.",
    },
    "corrupted": {
        "reported": "A run that the service marks is noticed within one poll.",
        "not reported": "Lost weights are noticed by failed calls and the canary alone.",
        NOT_TRIED: "The field is there; whether it is ever set shows only when a run breaks.",
    },
    "noise of answers": {
        "none": "The canary tells steps apart by any difference of their answers.",
        "some": "The canary tells steps apart where they lead farther than the noise reaches.",
    },
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a service does or does not.

    Attributes:
        what: What was looked at.
        found: What was found, in a word or two.
        promise: What can be promised there, or cannot, in one sentence.
        detail: The measure or the error behind it; empty if there is none.
    """

    what: str
    found: str
    promise: str
    detail: str = ""


def fact(what: str, found: str, detail: str = "") -> Fact:
    """A fact, with the promise that belongs to it."""
    return Fact(what, found, _PROMISES[what].get(found, _OPEN), detail)


def short(error: Exception) -> str:
    """An error as a fact's detail: on one line, without secrets."""
    text = " ".join(redact(str(error)).split())
    return text if len(text) <= MOST else f"{text[:MOST]}..."


def restores(diagnosis: Diagnosis) -> tuple[Fact, Fact]:
    """What an experiment says of weights and optimizer."""
    weights = "yes" if diagnosis.weights_off == 0 else "within noise"
    optimizer = {
        OptimizerFinding.EXACT: "yes",
        OptimizerFinding.WITHIN_NOISE: "within noise",
        OptimizerFinding.INEXACT: "inexactly",
        OptimizerFinding.COLD: "no",
    }.get(diagnosis.finding, CANNOT_TELL)
    if not math.isfinite(diagnosis.noise_before):
        weights = CANNOT_TELL
    elif diagnosis.weights_off > ALLOWANCE * diagnosis.noise_before:
        weights = "no"
    return fact("weights restored", weights), fact("optimizer restored", optimizer)


def seed(same: float, other: float, noise: float) -> Fact:
    """Whether two runs of one seed are trained alike.

    Args:
        same: How far the answers of two runs of one seed are apart, after the same steps.
        other: How far those of two seeds are.
        noise: The service's own noise.
    """
    detail = f"same seed {same:.3g} apart, another {other:.3g}"
    if not (math.isfinite(same) and math.isfinite(other)):
        return fact("seed honoured", CANNOT_TELL, detail)
    if same <= ALLOWANCE * noise:
        return fact("seed honoured", "yes" if other > CLEAR * noise else CANNOT_TELL, detail)
    return fact("seed honoured", "no", detail)


def noise_of(noise: float) -> Fact:
    """The noise of forward passes."""
    return fact("noise of answers", "some" if noise else "none", f"{noise:.3g}")
