"""The canary: a small fixed batch whose logprobs identify the weights.

The answer at each checkpoint is remembered: in full by the process that asked, and as a fingerprint
stored with the next checkpoint. The same weights give the same answer, up to the noise of the
service, so a wrong restore and a silent return to older weights are both detected where that noise
does not hide them. Pure: the callers ask, and decide when.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import enum
import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tinker import types

from tinker_recovery.errors import UsageError

KEPT = 32
"""How many of the numbers a fingerprint stores, evenly spread; its digest covers them all."""

NOISE_MISTAKEN = (
    "the weights it restores are not the ones that were saved: the canary's logprobs differ by up"
)
"""How versions that knew nothing of a service's noise began their reason for a bad mark. Such marks
are not believed: what is bad is found so again."""

Answer = tuple[float, ...]
"""The logprobs of every token of the canary, in order."""


def answer_of(output: types.ForwardBackwardOutput) -> Answer:
    """The answer in the result of a forward pass."""
    return tuple(float(value) for each in output.loss_fn_outputs for value in each["logprobs"].data)


def distance(one: Answer, other: Answer) -> float:
    """The largest difference of a logprob; infinite where the two cannot be compared."""
    if len(one) != len(other):
        return math.inf
    # Equal infinities do not differ, and NaN differs from everything.
    differences = (
        0.0 if left == right else abs(left - right) for left, right in zip(one, other, strict=True)
    )
    return max((math.inf if math.isnan(each) else each for each in differences), default=0.0)


@dataclass(frozen=True, slots=True)
class Canary:
    """The fingerprint of an answer, in single precision. Equal means equal to the bit.

    Attributes:
        count: How many numbers there were.
        digest: Digest of all of them.
        sample: Up to :data:`KEPT` of them, evenly spread.
    """

    count: int
    digest: str
    sample: tuple[float, ...]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Self:
        """Take the fingerprint.

        Raises:
            UsageError: There are no numbers, or one is not finite in single precision, so nothing
                could be compared with it.
        """
        if not numbers:
            raise UsageError("a canary needs at least one number")
        try:
            packed = struct.pack(f"<{len(numbers)}f", *numbers)
        except (OverflowError, struct.error) as error:
            raise UsageError(f"a canary cannot be made of these numbers: {error}") from error
        single = struct.unpack(f"<{len(numbers)}f", packed)
        if not all(math.isfinite(number) for number in single):
            raise UsageError("a canary cannot be made of numbers that are NaN or infinite")
        kept = min(KEPT, len(single))
        spread = [single[index * len(single) // kept] for index in range(kept)]
        digest = hashlib.sha256(packed).hexdigest()[:32]
        return cls(len(single), digest, tuple(spread))

    def distance_to(self, other: Canary) -> float:
        """The largest difference in the samples; infinite where the two cannot be compared."""
        return distance(self.sample, other.sample) if self.count == other.count else math.inf

    def __str__(self) -> str:
        """As it is stored with a checkpoint."""
        packed = struct.pack(f"<{len(self.sample)}f", *self.sample)
        return f"{self.count}:{self.digest}:{base64.b64encode(packed).decode()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reverse of ``str()``.

        Raises:
            UsageError: The text is not a fingerprint.
        """
        try:
            count, digest, sample = text.split(":")
            packed = base64.b64decode(sample, validate=True)
            numbers = struct.unpack(f"<{len(packed) // 4}f", packed)
            return cls(int(count), digest, numbers)
        except (ValueError, binascii.Error, struct.error) as error:
            raise UsageError(f"{text[:80]!r} is not a canary's fingerprint") from error


def _is_alone(at: int, known: Mapping[int, Answer]) -> bool:
    """Whether the answer at a step is one that no other weights come to by chance.

    It is if most of its numbers are others at the nearest step known, by more than rounding.
    """
    others = [(abs(other - at), other) for other in known if other != at]
    if not others:
        return True
    one, other = known[at], known[min(others)[1]]
    moved = sum(abs(left - right) > MOVED for left, right in zip(one, other, strict=False))
    return 2 * moved >= len(one)


def fingerprint_of(answer: Answer) -> str | None:
    """As it is stored with a checkpoint; None if nothing could be compared with it."""
    try:
        return str(Canary.of(answer))
    except UsageError:
        return None


class Match(enum.Enum):
    """Whether an answer fits weights whose answer is known."""

    SAME = "same"
    """It is theirs, as far as the service's noise lets anything be known."""
    DIFFERENT = "different"
    """The service's noise does not explain how far it is from theirs."""
    UNCLEAR = "cannot tell"
    """Neither: as if there were no canary."""


SAME_WITHIN = 2.0
"""Answers up to this many times as far apart as the noise measured pass for the same weights."""

DIFFERENT_BEYOND = 4.0
"""Answers more than this many times as far apart as the noise measured are of other weights."""

MEASURED = 2
"""Differences after which one far beyond them needs a second to count as noise."""

MOVED = 1e-6
"""How far a logprob in single precision has to be from another to differ by more than rounding."""

ASKED = 3
"""How often the canary is asked on the weights a run begins with, to measure the noise; and at
most before restored weights are said to be others than those expected, or not to be known."""


class CanaryBook:
    """What the canary answered at each checkpoint of a run, and how noisy the answers are.

    Answers that this process received are kept in full; of earlier ones there are fingerprints,
    from checkpoints or the journal. The noise is the largest distance seen of two answers for the
    same weights. Where it is 0, and on services whose answers are equal to the bit it is, the
    tolerance alone decides; where it is not, there is a range in which nothing can be told.

    Args:
        tolerance: The largest distance of two answers that always count as equal.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._answers: dict[tuple[str, int], Answer] = {}
        self._fingerprints: dict[tuple[str, int], Canary] = {}
        self._measured = 0
        self._outlier = 0.0
        self.noise = 0.0
        """The largest distance of two answers for the same weights, as far as measured."""

    # The noise

    @property
    def measured(self) -> bool:
        """Whether the noise has been measured, here or by an earlier process."""
        return self._measured >= MEASURED

    @property
    def _same_within(self) -> float:
        return max(self._tolerance, SAME_WITHIN * self.noise)

    @property
    def _different_beyond(self) -> float:
        return max(self._tolerance, DIFFERENT_BEYOND * self.noise)

    def know_noise(self, noise: float) -> None:
        """Take over the noise that an earlier process measured."""
        if math.isfinite(noise):
            self.noise = max(self.noise, noise)
            self._measured = max(self._measured, MEASURED)

    def measure(self, one: Answer, other: Answer) -> None:
        """Learn from two answers for the same weights.

        A distance that what was measured before does not explain may come of weights that the
        service lost in between, so it has to be seen twice.
        """
        apart = distance(one, other)
        if not math.isfinite(apart):
            return
        self._measured += 1
        if self._measured > MEASURED and apart > self._different_beyond:
            apart, self._outlier = min(apart, self._outlier), max(apart, self._outlier)
        self.noise = max(self.noise, apart)

    # What was answered

    def record(self, attempt: str, step: int, answer: Answer) -> None:
        """Remember the answer of an attempt's weights at a step; a second one shows the noise.

        One that is not finite is none: nothing could be compared with it.
        """
        at = attempt, step
        if fingerprint_of(answer) is None:
            return
        if at in self._answers:
            self.measure(self._answers[at], answer)
        else:
            self._answers[at] = answer

    def learn(self, attempt: str, step: int, fingerprint: str) -> None:
        """Remember the fingerprint of an answer; one that cannot be read is ignored."""
        with contextlib.suppress(UsageError):
            self._fingerprints[attempt, step] = Canary.parse(fingerprint)

    def forget(self, attempt: str, step: int) -> None:
        """Forget the answers of these weights: there is no checkpoint of them any more."""
        self._answers.pop((attempt, step), None)
        self._fingerprints.pop((attempt, step), None)

    def expects(self, attempt: str, step: int) -> bool:
        """Whether the answer of these weights is known."""
        return (attempt, step) in self._answers or (attempt, step) in self._fingerprints

    def known(self, attempt: str) -> list[tuple[str, int]]:
        """The (attempt, step) of every full answer of an attempt's weights."""
        return [at for at in self._answers if at[0] == attempt]

    # What an answer says

    def compare(self, answers: Sequence[Answer], attempt: str, step: int) -> tuple[Match, float]:
        """Whether weights that gave these answers are those of an attempt at a step.

        Returns what can be told, and how far the nearest answer is from theirs. Where nothing is
        known of them nothing can be told. What is confirmed is learned from.
        """
        at = attempt, step
        if at not in self._answers and at not in self._fingerprints:
            return Match.UNCLEAR, 0.0
        apart = min(self._apart(answer, at) for answer in answers)
        if apart > self._different_beyond:
            return Match.DIFFERENT, apart
        if apart > self._same_within:
            return Match.UNCLEAR, apart
        if apart > self._tolerance:
            self.noise = max(self.noise, apart)
        return Match.SAME, apart

    def _apart(self, answer: Answer, at: tuple[str, int]) -> float:
        if at in self._answers:
            return distance(answer, self._answers[at])
        try:
            return self._fingerprints[at].distance_to(Canary.of(answer))
        except UsageError:
            return math.inf

    def older(
        self, answer: Answer, step: int, branch: Iterable[tuple[str, int]]
    ) -> tuple[Match, int | None]:
        """Whether weights with this answer are those of an earlier step, and of which.

        DIFFERENT if they are none of the earlier ones whose answers are known. UNCLEAR if they may
        be: the noise is not measured yet, or they are near several, near none and not far from one,
        or near one from which the steps since then may not have led farther than the noise. Where
        answers have no noise, one that is equal to that of one step alone is of that step, however
        little the steps move it; but not where they hardly move it at all: a model that has
        converged comes to the same numbers now and then.

        Args:
            answer: The answer just now.
            step: Optimizer steps that should be in the weights.
            branch: The (attempt, step) of every checkpoint the run descends from.
        """
        known = {
            at: self._answers[attempt, at]
            for attempt, at in branch
            if (attempt, at) in self._answers
        }
        apart = {at: distance(answer, old) for at, old in known.items() if at < step}
        equal = [at for at, each in apart.items() if each == 0.0]
        if len(equal) == 1 and self.noise == 0.0 and _is_alone(equal[0], known):
            return Match.SAME, equal[0]
        near = [at for at, each in apart.items() if each <= self._different_beyond]
        if not near:
            # One that differs by noise alone is as far, as long as nobody knows the noise.
            return Match.UNCLEAR if apart and not self.measured else Match.DIFFERENT, None
        at = near[0]
        if len(near) > 1 or apart[at] > self._same_within or not self._left(at, step, known):
            return Match.UNCLEAR, None
        return Match.SAME, at

    def others(self, answer: Answer, attempt: str, branch: Iterable[tuple[str, int]]) -> list[int]:
        """The steps of an attempt, of these, whose weights are certainly not those of an answer."""
        least = self._different_beyond if self.noise else 0.0
        return [
            at[1]
            for at in branch
            if at[0] == attempt
            and at in self._answers
            and distance(answer, self._answers[at]) > least
        ]

    def _left(self, at: int, step: int, known: Mapping[int, Answer]) -> bool:
        """Whether the steps since ``at`` have led away from it farther than the noise reaches.

        As far as can be expected: as they moved between there and the nearest step known. Where
        the service's answers are as good as exact, any movement shows.
        """
        if self._different_beyond <= self._tolerance:
            return True
        others = [(abs(other - at), other) for other in known if other != at]
        if not others:
            return False
        steps, nearest = min(others)
        moved = distance(known[at], known[nearest]) / steps
        return moved * (step - at) > self._different_beyond
