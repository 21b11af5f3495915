"""The diagnosis: what the answers in one experiment show about a service's restores. Pure.

All distances are the largest difference of a logprob between two answers. Two of them set the
scale. *The optimizer's part*: how far a live client and one resumed without optimizer are apart
after the one step; a diagnosis is possible only where it is clearly visible. *The service's own
noise*: how far answers are apart that should be equal, because the same weights were asked twice,
or the same thing was done twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations

from tinker_recovery.checkpoints.canary import Answer, distance

ALLOWANCE = 4.0
"""Up to how many times the measured noise a difference counts as noise: few samples were taken."""

CLEAR = 20.0
"""How many times the noise the optimizer's part has to be for a diagnosis."""

NEAR = 0.1
"""A restore within this share of the optimizer's part of a cold one counts as cold."""


class OptimizerFinding(Enum):
    """What a service's restore with optimizer does."""

    EXACT = "exact"
    """The next step equals the live run's, to the bit."""
    WITHIN_NOISE = "within_noise"
    """The next step differs by no more than the service's own noise."""
    INEXACT = "inexact"
    """The next step is neither the live run's, nor that of a cold optimizer."""
    COLD = "cold"
    """The next step is that of a cold optimizer: the moments are not restored."""
    WEIGHTS_CHANGED = "weights_changed"
    """The weights are not the saved ones, before any step."""
    INCONCLUSIVE = "cannot_tell"
    """The optimizer's part is not clearly above the noise."""

    @property
    def real(self) -> bool | None:
        """Whether the optimizer is restored; None if inconclusive."""
        if self is OptimizerFinding.INCONCLUSIVE:
            return None
        return self in (OptimizerFinding.EXACT, OptimizerFinding.WITHIN_NOISE)


@dataclass(frozen=True, slots=True)
class Stand:
    """The answers of one client to the fixed batch: two before the one step, two after it."""

    before: tuple[Answer, Answer]
    after: tuple[Answer, Answer]


@dataclass(frozen=True, slots=True)
class Observations:
    """One experiment.

    Attributes:
        live: The client that was not restored; ``before`` is when the checkpoint was saved.
        warm: Two clients resumed with optimizer, to be compared with each other as well.
        cold: The client resumed with weights only.
    """

    live: Stand
    warm: tuple[Stand, Stand]
    cold: Stand


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The finding, and the distances it is based on, in logprobs.

    Attributes:
        finding: What the restore does.
        words: The same for people, with what to do about it.
        one_step: How far the one step moved the live client's answers.
        weights_off: The largest distance of restored weights from the saved ones.
        optimizer_part: Distance of the cold client from the live one after the step.
        restored_off: The largest distance of the clients with optimizer from the live one after it.
        noise_before: The service's own noise before the step.
        noise_after: The service's own noise after it.
    """

    finding: OptimizerFinding
    words: str
    one_step: float
    weights_off: float
    optimizer_part: float
    restored_off: float
    noise_before: float
    noise_after: float


def diagnose(seen: Observations) -> Diagnosis:
    """The diagnosis of one experiment."""
    live, restores = seen.live, (*seen.warm, seen.cold)
    saved, stepped = live.before[0], live.after[0]
    # The nearest two of the three restores: one that went wrong is not noise.
    nearest = min(distance(a.before[0], b.before[0]) for a, b in combinations(restores, 2))
    noise_before = max(nearest, *(distance(*each.before) for each in (live, *restores)))
    asked_twice = max(noise_before, *(distance(*each.after) for each in (live, *restores)))
    offs = [distance(stepped, each.after[0]) for each in seen.warm]
    # Doing the same twice has noise as well. But if one of the two steps equals the live one's, the
    # service is exact, and the other step really differs.
    done_twice = distance(seen.warm[0].after[0], seen.warm[1].after[0]) if min(offs) else 0.0
    found = Diagnosis(
        OptimizerFinding.INCONCLUSIVE,
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


def _judge(found: Diagnosis, asked_twice: float, colds: int) -> OptimizerFinding:
    if not math.isfinite(found.noise_before):
        return OptimizerFinding.INCONCLUSIVE
    if found.weights_off > ALLOWANCE * found.noise_before:
        return OptimizerFinding.WEIGHTS_CHANGED
    if colds and _stands_out(found.optimizer_part, asked_twice):
        return OptimizerFinding.COLD
    if not _stands_out(found.optimizer_part, found.noise_after):
        return OptimizerFinding.INCONCLUSIVE
    if found.restored_off == found.weights_off == 0:
        return OptimizerFinding.EXACT
    in_noise = found.restored_off <= ALLOWANCE * found.noise_after
    return OptimizerFinding.WITHIN_NOISE if in_noise else OptimizerFinding.INEXACT


def _stands_out(part: float, noise: float) -> bool:
    return CLEAR * noise < part < math.inf


def _words(m: Diagnosis, finding: OptimizerFinding, colds: int) -> str:
    match finding:
        case OptimizerFinding.EXACT:
            return (
                "The optimizer is restored exactly: the step after resuming with optimizer equals "
                "the live run's, to the bit."
            )
        case OptimizerFinding.WITHIN_NOISE:
            return (
                f"The optimizer is restored: the step after resuming with it differs by "
                f"{m.restored_off:.3g} from the live run's, within the service's own noise of "
                f"{max(m.noise_before, m.noise_after):.3g}; without it, by "
                f"{m.optimizer_part:.3g}. Recovered runs are as exact as the service is."
            )
        case OptimizerFinding.INEXACT:
            return (
                f"The optimizer is restored inexactly: the step after resuming with it differs by "
                f"{m.restored_off:.3g} from the live run's. That is "
                f"{m.restored_off / m.optimizer_part:.0%} of the difference without it, and more "
                "than the service's own noise. Recovered runs continue, but not exactly."
            )
        case OptimizerFinding.COLD:
            which = "" if colds > 1 else "in one of two restores "
            return (
                f"The optimizer is not restored: {which}the step after resuming with optimizer is "
                f"the one without it, {m.restored_off:.3g} from the live run's, though the service "
                "reported success. Every recovery restarts the optimizer from zero: report this to "
                "the service's operator, and expect a bump in the loss after each recovery."
            )
        case OptimizerFinding.WEIGHTS_CHANGED:
            return (
                f"The weights are not restored: they differ by {m.weights_off:.3g} from the saved "
                f"ones before any step, where one step moves them by {m.one_step:.3g} and the "
                f"service's own noise is {m.noise_before:.3g}. Do not rely on recovery from its "
                "checkpoints, and report this to the service's operator."
            )
        case OptimizerFinding.INCONCLUSIVE:
            return (
                "Inconclusive: a step with the optimizer and one without it differ by "
                f"{m.optimizer_part:.3g}, and the service's own noise is {m.noise_after:.3g}. Try "
                "more --steps."
            )
