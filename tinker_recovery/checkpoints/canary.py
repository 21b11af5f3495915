"""A fingerprint of a model's behaviour: what it answers to one fixed batch.

The run computes the numbers (say the logprobs of a forward pass over a few fixed tokens) once when
it saves and again after it has restored. Equal to the bit, or within a tolerance: the service gave
back what was stored.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

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
