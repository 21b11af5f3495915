"""The canary: a small fixed batch whose logprobs tell which weights these are.

The answer at each checkpoint is remembered: whole by the process that asked, and as a fingerprint
stored with the next checkpoint. The same weights give the same answer, within a tolerance, so a
wrong restore and a silent return to older weights both show. Pure: who asks, and
when, is decided elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from tinker import types

from tinker_recovery.errors import UsageError

KEPT = 32
"""How many of the numbers are stored, evenly spread; the digest covers them all."""


@dataclass(frozen=True, slots=True)
class Canary:
    """The fingerprint of a sequence of numbers, in single precision.

    Attributes:
        count: How many there were.
        digest: Of all of them, to the bit.
        sample: Up to :data:`KEPT` of them, evenly spread.
    """

    count: int
    digest: str
    sample: tuple[float, ...]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Self:
        """Take the fingerprint.

        Raises:
            UsageError: There is nothing to take it of, or a number is not finite or is beyond
                single precision: it would be no ground for comparison.
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

    def __str__(self) -> str:
        """As it is stored with a checkpoint."""
        packed = struct.pack(f"<{len(self.sample)}f", *self.sample)
        return f"{self.count}:{self.digest}:{base64.b64encode(packed).decode()}"

    @classmethod
    def parse(cls, said: str) -> Self:
        """What ``str()`` wrote.

        Raises:
            UsageError: It is something else.
        """
        try:
            count, digest, sample = said.split(":")
            packed = base64.b64decode(sample, validate=True)
            numbers = struct.unpack(f"<{len(packed) // 4}f", packed)
            return cls(int(count), digest, numbers)
        except (ValueError, binascii.Error, struct.error) as error:
            raise UsageError(f"{said[:80]!r} is not a canary's fingerprint") from error


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two fingerprints compare.

    Attributes:
        result: ``"exact"``: to the bit. ``"close"``: the samples agree within the tolerance.
            ``"different"``: they do not, or cannot be compared.
        difference: The largest difference among the samples; infinite if not comparable.
    """

    result: Literal["exact", "close", "different"]
    difference: float


def compare(stored: Canary, seen: Canary, *, tolerance: float) -> Comparison:
    """Compare what was stored with what is seen now.

    Args:
        stored: From the checkpoint.
        seen: Taken after restoring it.
        tolerance: Largest absolute difference of a number that still counts as close.
    """
    if stored.count != seen.count or len(stored.sample) != len(seen.sample):
        return Comparison("different", math.inf)
    difference = max(
        (abs(one - other) for one, other in zip(stored.sample, seen.sample, strict=True)),
        default=math.inf,
    )
    if stored.digest == seen.digest and difference == 0:
        return Comparison("exact", 0.0)
    # NaN is not below anything, so a damaged sample is never close.
    return Comparison("close" if difference <= tolerance else "different", difference)


Answer = tuple[float, ...]
"""The logprobs of every token of the canary, in order."""


def answer_of(output: types.ForwardBackwardOutput) -> Answer:
    """The answer inside the result of a forward pass."""
    return tuple(float(value) for each in output.loss_fn_outputs for value in each["logprobs"].data)


def distance(one: Answer, other: Answer) -> float:
    """The largest difference of a logprob; infinite where the two cannot be compared."""
    if len(one) != len(other):
        return float("inf")
    widest = 0.0
    for left, right in zip(one, other, strict=True):
        # Written so that NaN counts as far away, and two equal infinities as near.
        if left == right:
            continue
        apart = abs(left - right)
        widest = max(widest, apart if apart == apart else float("inf"))  # noqa: PLR0124 - the test for NaN
    return widest


def fingerprint_of(answer: Answer) -> str | None:
    """As it is stored with a checkpoint; None if there is nothing to compare with in it."""
    try:
        return str(Canary.of(answer))
    except UsageError:
        return None


def _distance(answer: Answer, fingerprint: Canary) -> float:
    try:
        return compare(fingerprint, Canary.of(answer), tolerance=0.0).difference
    except UsageError:
        return float("inf")


class CanaryBook:
    """What the canary answered at each checkpoint of a run.

    Answers heard by this process are kept whole; of those heard by an earlier one there is a
    fingerprint, as it was stored with a checkpoint or in the journal.

    Args:
        tolerance: The largest distance of two answers that count as equal.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._answers: dict[tuple[str, int], Answer] = {}
        self._fingerprints: dict[tuple[str, int], Canary] = {}

    def record(self, attempt: str, step: int, answer: Answer) -> None:
        """Remember what the weights of an attempt answered at a step."""
        self._answers[attempt, step] = answer

    def learn(self, attempt: str, step: int, said: str) -> None:
        """Remember the fingerprint of an answer; one that cannot be read is passed over."""
        with contextlib.suppress(UsageError):
            self._fingerprints[attempt, step] = Canary.parse(said)

    def expects(self, attempt: str, step: int) -> bool:
        """Whether it is known what these weights answer."""
        return (attempt, step) in self._answers or (attempt, step) in self._fingerprints

    def objection(self, answer: Answer, attempt: str, step: int) -> str | None:
        """Why weights that give this answer are not those, in words; None if nothing says so."""
        if (known := self._answers.get((attempt, step))) is not None:
            apart = distance(answer, known)
        elif (fingerprint := self._fingerprints.get((attempt, step))) is not None:
            apart = _distance(answer, fingerprint)
        else:
            return None
        if apart <= self._tolerance:
            return None
        return (
            "the weights it restores are not the ones that were saved: the canary's logprobs "
            f"differ by up to {apart:.3g}"
        )

    def known(self, attempt: str) -> list[tuple[str, int]]:
        """The (attempt, step) of every answer an attempt's weights gave."""
        return [at for at in self._answers if at[0] == attempt]

    def equal(self, one: Answer, other: Answer) -> bool:
        """Whether two answers are those of the same weights."""
        return distance(one, other) <= self._tolerance

    def rolled_back_to(
        self, answer: Answer, step: int, branch: Iterable[tuple[str, int]]
    ) -> int | None:
        """The earlier step whose weights answer, though those of ``step`` should; None if none.

        An answer that is equal to that of the newest checkpoint below ``step`` and to an older
        one's as well says nothing: these weights do not change from step to step.

        Args:
            answer: What was answered just now.
            step: Optimizer steps that should be in the weights.
            branch: The (attempt, step) of every checkpoint the run descends from.
        """
        matches = {
            at
            for attempt, at in branch
            if at < step
            and (old := self._answers.get((attempt, at))) is not None
            and self.equal(answer, old)
        }
        return matches.pop() if len(matches) == 1 else None
