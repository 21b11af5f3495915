"""The canary: a small fixed batch whose logprobs identify the weights.

The answer at each checkpoint is remembered: in full by the process that asked, and as a fingerprint
stored with the next checkpoint. The same weights give the same answer, within a tolerance, so a
wrong restore and a silent return to older weights are both detected. Pure: the callers ask, and
decide when.
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
from typing import Self

from tinker import types

from tinker_recovery.errors import UsageError

KEPT = 32
"""How many of the numbers a fingerprint stores, evenly spread; its digest covers them all."""

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


def fingerprint_of(answer: Answer) -> str | None:
    """As it is stored with a checkpoint; None if nothing could be compared with it."""
    try:
        return str(Canary.of(answer))
    except UsageError:
        return None


class CanaryBook:
    """What the canary answered at each checkpoint of a run.

    Answers that this process received are kept in full; of earlier ones there are fingerprints,
    from checkpoints or the journal.

    Args:
        tolerance: The largest distance of two answers that count as equal.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._answers: dict[tuple[str, int], Answer] = {}
        self._fingerprints: dict[tuple[str, int], Canary] = {}

    def record(self, attempt: str, step: int, answer: Answer) -> None:
        """Remember the answer of an attempt's weights at a step."""
        self._answers[attempt, step] = answer

    def learn(self, attempt: str, step: int, fingerprint: str) -> None:
        """Remember the fingerprint of an answer; one that cannot be read is ignored."""
        with contextlib.suppress(UsageError):
            self._fingerprints[attempt, step] = Canary.parse(fingerprint)

    def expects(self, attempt: str, step: int) -> bool:
        """Whether the answer of these weights is known."""
        return (attempt, step) in self._answers or (attempt, step) in self._fingerprints

    def objection(self, answer: Answer, attempt: str, step: int) -> str | None:
        """Why weights with this answer are not those; None if they may be, or none is known."""
        at = attempt, step
        if at in self._answers:
            apart = distance(answer, self._answers[at])
        elif at in self._fingerprints:
            try:
                apart = self._fingerprints[at].distance_to(Canary.of(answer))
            except UsageError:
                apart = math.inf
        else:
            return None
        if apart <= self._tolerance:
            return None
        return (
            "the weights it restores are not the ones that were saved: the canary's logprobs "
            f"differ by up to {apart:.3g}"
        )

    def known(self, attempt: str) -> list[tuple[str, int]]:
        """The (attempt, step) of every full answer of an attempt's weights."""
        return [at for at in self._answers if at[0] == attempt]

    def rolled_back_to(
        self, answer: Answer, step: int, branch: Iterable[tuple[str, int]]
    ) -> int | None:
        """The earlier step whose weights gave this answer; None if there is none, or several.

        Several mean that the weights hardly change from step to step, so the answer cannot tell
        which they are.

        Args:
            answer: The answer just now.
            step: Optimizer steps that should be in the weights.
            branch: The (attempt, step) of every checkpoint the run descends from.
        """
        matches = {
            at
            for attempt, at in branch
            if at < step
            and (old := self._answers.get((attempt, at))) is not None
            and distance(answer, old) <= self._tolerance
        }
        return matches.pop() if len(matches) == 1 else None
