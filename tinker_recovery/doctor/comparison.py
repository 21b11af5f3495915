"""The judgement: what a few answers say about a service's restores. Pure.

Everything is measured in logprobs: the distance of two answers is the largest difference of one.
Two distances set the scale. *The optimizer's part*: how far apart a live client and one resumed
without optimizer are after the one step; only where this shows clearly can anything be told. *The
service's own noise*: how far apart answers are that should be the same, because the same weights
were asked twice, or the same thing was done twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations

from tinker_recovery.checkpoints.canary import Answer, distance

ALLOWANCE = 4.0
"""How many times the noise a difference may have and still be noise: it was measured a few times
only, and the next time it may be larger."""

CLEAR = 20.0
"""How many times the noise the optimizer's part has to be before anything is told from it."""

NEAR = 0.1
"""Within this share of the optimizer's part, a restore counts as the one it is nearest to."""


class Finding(Enum):
    """What a service's restore with optimizer is."""

    EXACT = "exact"
    """The next step is the one the live run took, to the bit."""
    WITHIN_NOISE = "within_noise"
    """It differs by no more than the service differs from itself."""
    INEXACT = "inexact"
    """It is neither the live run's, nor that of a cold optimizer."""
    COLD = "cold"
    """It is the one a cold optimizer takes: the moments did not come back."""
    WEIGHTS_CHANGED = "weights_changed"
    """The weights themselves are not the saved ones, before any step."""
    INCONCLUSIVE = "cannot_tell"
    """The optimizer's part does not stand out from the noise."""

    @property
    def real(self) -> bool | None:
        """Whether the optimizer comes back; None if that could not be told."""
        if self is Finding.INCONCLUSIVE:
            return None
        return self in (Finding.EXACT, Finding.WITHIN_NOISE)


@dataclass(frozen=True, slots=True)
class Stand:
    """What one client answered to the fixed batch: asked twice before the one step, twice after."""

    before: tuple[Answer, Answer]
    after: tuple[Answer, Answer]


@dataclass(frozen=True, slots=True)
class Observations:
    """One experiment.

    Attributes:
        live: The client that went on; ``before`` is when the checkpoint was saved.
        warm: Two clients resumed with optimizer, so that they can be compared with each other.
        cold: The client resumed with weights only.
    """

    live: Stand
    warm: tuple[Stand, Stand]
    cold: Stand


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The judgement, and the distances it rests on, in logprobs.

    Attributes:
        finding: What the restore is.
        words: The same for people, with what to do.
        one_step: How far the one step moved the live client's answers.
        weights_off: How far restored weights were from the saved ones, at most.
        optimizer_part: How far the cold client was from the live one after the step.
        restored_off: How far the clients with optimizer were from the live one, at most.
        noise_before: The service's own noise in what was compared before the step.
        noise_after: The same after it.
    """

    finding: Finding
    words: str
    one_step: float
    weights_off: float
    optimizer_part: float
    restored_off: float
    noise_before: float
    noise_after: float


def diagnose(seen: Observations) -> Diagnosis:
    """Judge one experiment."""
    live, restores = seen.live, (*seen.warm, seen.cold)
    saved, stepped = live.before[0], live.after[0]
    # Of three restores of one checkpoint the nearest two: one that went wrong is not noise.
    nearest = min(distance(a.before[0], b.before[0]) for a, b in combinations(restores, 2))
    noise_before = max(nearest, *(distance(*each.before) for each in (live, *restores)))
    asked_twice = max(noise_before, *(distance(*each.after) for each in (live, *restores)))
    offs = [distance(stepped, each.after[0]) for each in seen.warm]
    # Doing the same twice is noise as well; a service that can take the same step to the bit has
    # none, and then the one that differs is another step.
    done_twice = distance(seen.warm[0].after[0], seen.warm[1].after[0]) if min(offs) else 0.0
    found = Diagnosis(
        Finding.INCONCLUSIVE,
        "",
        one_step=distance(saved, stepped),
        weights_off=max(distance(saved, each.before[0]) for each in restores),
        optimizer_part=distance(stepped, seen.cold.after[0]),
        restored_off=max(offs),
        noise_before=noise_before,
        noise_after=max(asked_twice, done_twice),
    )
    near_cold = max(ALLOWANCE * asked_twice, NEAR * found.optimizer_part)
    colds = sum(distance(seen.cold.after[0], each.after[0]) <= near_cold for each in seen.warm)
    finding = _judge(found, asked_twice, colds)
    return replace(found, finding=finding, words=_words(found, finding, colds))


def _judge(found: Diagnosis, asked_twice: float, colds: int) -> Finding:
    if not math.isfinite(found.noise_before):
        return Finding.INCONCLUSIVE
    if found.weights_off > ALLOWANCE * found.noise_before:
        return Finding.WEIGHTS_CHANGED
    if colds and _stands_out(found.optimizer_part, asked_twice):
        return Finding.COLD
    if not _stands_out(found.optimizer_part, found.noise_after):
        return Finding.INCONCLUSIVE
    return _judge_step(found)


def _stands_out(part: float, noise: float) -> bool:
    return CLEAR * noise < part < math.inf


def _judge_step(found: Diagnosis) -> Finding:
    if found.restored_off == found.weights_off == 0:
        return Finding.EXACT
    if found.restored_off <= ALLOWANCE * found.noise_after:
        return Finding.WITHIN_NOISE
    return Finding.INEXACT


def _words(m: Diagnosis, finding: Finding, colds: int) -> str:
    match finding:
        case Finding.EXACT:
            return (
                "The optimizer comes back, exactly: the step after resuming with optimizer is the "
                "one the live run took, to the bit."
            )
        case Finding.WITHIN_NOISE:
            return (
                f"The optimizer comes back: resumed with it, the next step differs by "
                f"{m.restored_off:.3g}, and this service differs from itself by "
                f"{max(m.noise_before, m.noise_after):.3g}. Without it, it differs by "
                f"{m.optimizer_part:.3g}. Recovered runs are as exact as the service is."
            )
        case Finding.INEXACT:
            return (
                f"The optimizer comes back inexactly: resumed with it, the next step is off by "
                f"{m.restored_off:.3g}, {m.restored_off / m.optimizer_part:.0%} of what it is off "
                "without it, and more than the service's own noise. Recovered runs go on, and "
                "not exactly as they would have."
            )
        case Finding.COLD:
            which = "" if colds > 1 else "in one of two restores "
            return (
                f"The optimizer does not come back: {which}the step after resuming with optimizer "
                f"is the one taken without it, off by {m.restored_off:.3g}, though the service "
                "reported success. Every recovery starts the optimizer afresh: tell the service's "
                "operator, and expect a bump in the loss after each."
            )
        case Finding.WEIGHTS_CHANGED:
            return (
                f"The weights themselves come back changed: off by {m.weights_off:.3g} before any "
                f"step, where one step moves them by {m.one_step:.3g} and the service's own noise "
                f"is {m.noise_before:.3g}. Do not rely on recovery from its checkpoints: tell the "
                "service's operator."
            )
        case Finding.INCONCLUSIVE:
            return (
                "It cannot be told: a step with the optimizer and one without it differ by "
                f"{m.optimizer_part:.3g}, and the service's own noise is {m.noise_after:.3g}. Try "
                "more --steps."
            )
