"""Limits deletions per second: a token bucket that is given the time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tinker_recovery.errors import UsageError


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Allows ``rate_per_s`` on average, and up to ``burst`` at once.

    Attributes:
        rate_per_s: Tokens added each second.
        burst: Most tokens it holds; it starts full.
        tokens: Tokens at the last :meth:`take`; None before the first.
        at_s: Monotonic seconds of that.
    """

    rate_per_s: float
    burst: int = 1
    tokens: float | None = None
    at_s: float = 0.0

    def __post_init__(self) -> None:
        if not (self.rate_per_s > 0 and math.isfinite(self.rate_per_s)):
            raise UsageError(
                f"rate_per_s={self.rate_per_s!r}: it has to be above zero and finite; to delete "
                "nothing, keep all checkpoints"
            )
        if self.burst < 1:
            raise UsageError(f"burst={self.burst}: it has to be at least 1")

    def take(self, now_s: float) -> tuple[TokenBucket, float]:
        """Take a token at this time, in monotonic seconds, if there is one.

        Returns:
            The bucket after it, and 0.0 if a token was taken, else the seconds to wait for one.
        """
        held = float(self.burst)
        if self.tokens is not None:
            # A clock that goes backwards adds no tokens and takes none.
            added = max(0.0, now_s - self.at_s) * self.rate_per_s
            held = min(held, self.tokens + added)
        # Allows for rounding: a caller that waited exactly wait_s gets its token.
        taken = held >= 1 - 1e-9
        left = max(0.0, held - 1) if taken else held
        wait_s = 0.0 if taken else (1 - held) / self.rate_per_s
        return replace(self, tokens=left, at_s=max(now_s, self.at_s)), wait_s
