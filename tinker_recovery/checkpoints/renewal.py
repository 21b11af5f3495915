"""Which checkpoints' lifetimes to renew, and when, so that no needed one expires."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tinker_recovery.checkpoints.record import CheckpointRecord
from tinker_recovery.errors import UsageError

MIN_TTL_S = 3600.0
"""The shortest lifetime the service accepts: an hour."""

MAX_TTL_S = 10 * 365 * 86_400.0
"""The longest one: ten years."""

LEAD = timedelta(days=1)
"""How long before its expiry a checkpoint is renewed, if its lifetime allows."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """A lifetime to renew.

    Attributes:
        path: The checkpoint's ``tinker://`` path.
        at: When to renew it; due if that is past.
        expires_at: When it expires otherwise.
        ttl_s: The new lifetime in whole seconds from the renewal on; None for no expiry.
        reason: Why the checkpoint is needed, for people.
    """

    path: str
    at: datetime
    expires_at: datetime
    ttl_s: int | None
    reason: str


def renewals(
    records: Iterable[CheckpointRecord],
    needed: Mapping[str, str],
    *,
    ttl_s: float | None,
    now: datetime,
    for_ever: Collection[str] = (),
) -> list[Renewal]:
    """The lifetimes to renew, the most urgent first; the order of the input does not matter.

    Each is renewed a day before its expiry, or when half of a shorter lifetime is left. One that
    has expired is left out.

    Args:
        records: The checkpoints as listed.
        needed: Path to reason, of those that must not expire: the one recovered from, the newest
            valid one, one being read.
        ttl_s: The new lifetime in seconds; None for no expiry, which also overrides a default
            lifetime of the service.
        now: The date, with a time zone.
        for_ever: Paths of those that lose their lifetime instead of getting a new one.

    Raises:
        UsageError: The service does not accept such a lifetime.
    """
    if ttl_s is not None and not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise UsageError(
            f"ttl_s={ttl_s!r}: the service accepts {MIN_TTL_S:.0f} s (an hour) to {MAX_TTL_S:.0f} "
            "s (ten years), or None for no expiry"
        )
    lead = LEAD if ttl_s is None else min(LEAD, timedelta(seconds=ttl_s / 2))
    found = {
        record.path: Renewal(
            record.path,
            record.expires_at - lead,
            record.expires_at,
            None if ttl_s is None or record.path in for_ever else int(ttl_s),
            needed[record.path],
        )
        for record in records
        if record.path in needed and record.expires_at is not None and record.expires_at > now
    }
    return sorted(found.values(), key=lambda renewal: (renewal.at, renewal.path))
