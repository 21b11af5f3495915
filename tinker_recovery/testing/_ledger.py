"""What an organization can look up afterwards: its audit log, and what its usage costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

Facts = dict[str, Any]
Usage = Literal["training", "sampling_prefill", "sampling_sample", "checkpoint"]
"""What is billed: tokens trained, tokens of prompts, tokens sampled, and saves."""

USD_PER_MILLION: dict[str, float] = {
    "training": 1.0,
    "sampling_prefill": 0.5,
    "sampling_sample": 2.0,
}
"""Rates of the local server's own, in USD per million tokens."""

USD_PER_GIGABYTE_MONTH = 0.05
"""A rate of the local server's own."""

_HOUR = timedelta(hours=1)


class Ledger:
    """Both; neither outlives a restart of the process.

    Args:
        wall: Seconds since the epoch.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._entries: list[Facts] = []
        self._usage: Counter[tuple[datetime, str, str, str]] = Counter()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC)

    def note(self, event: str, path: str) -> None:
        """Write what was done to a checkpoint into the audit log, ``checkpoint_read`` say."""
        run = path.removeprefix("tinker://").partition("/")[0]
        about = {"model_id": run, "tinker_path": path}
        entry = {"timestamp": self._now().isoformat(), "event": event, "event_details": about}
        self._entries.append({**entry, **about})

    def audit(self, resource: str, day: date | None) -> list[Facts]:
        """The entries of a day, by default today, oldest first.

        Args:
            resource: Plural, ``checkpoints`` say; or ``all``.
            day: In UTC.
        """
        day = day or self._now().date()
        return [
            entry
            for entry in self._entries
            if entry["timestamp"].startswith(day.isoformat())
            and resource in ("all", entry["event"].partition("_")[0] + "s")
        ]

    def count(self, kind: Usage, session: str, base_model: str, quantity: int) -> None:
        """Add to what was used in this hour."""
        hour = self._now().replace(minute=0, second=0, microsecond=0)
        self._usage[hour, session, base_model, kind] += quantity

    def usage(self, start: datetime, end: datetime) -> list[Facts]:
        """What was used from ``start`` to before ``end``, as ``BillingUsageEvent``, by hour."""
        return [
            {
                "bucket_start": hour.isoformat(),
                "bucket_end": (hour + _HOUR).isoformat(),
                "session_id": session,
                "base_model": base_model,
                **_priced(kind, quantity),
            }
            for (hour, session, base_model, kind), quantity in sorted(self._usage.items())
            if start <= hour < end
        ]


def _priced(kind: str, quantity: int) -> Facts:
    if kind == "checkpoint":
        return {"event_info": {"type": kind, "count": quantity}}
    cached = {"cached": False} if kind == "sampling_prefill" else {}
    rate = USD_PER_MILLION[kind]
    return {
        "event_info": {"type": kind, "token_count": quantity, **cached},
        "effective_rate_usd_per_million_tokens": rate,
        "estimated_cost_usd": rate * quantity / 1e6,
    }
