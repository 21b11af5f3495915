"""Which sampler weights to delete: the newest of each run stay, and what is protected.

Sampler weights carry no metadata, so nothing says at which step they were saved, or by which run
but the Tinker run in their path. They are the loop's own, and deleted only when a person asks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta

from tinker_recovery.checkpoints.deletion_plan import DeletionPlan, PlannedCheckpoint
from tinker_recovery.checkpoints.record import Listed
from tinker_recovery.errors import UsageError

_PATH = re.compile(r"tinker://(?P<run>[^/\s]+)/(?:weights|sampler_weights)/[^/\s]+")


def run_id_of_any(path: str) -> str:
    """The Tinker run id in a path of a training checkpoint or of sampler weights.

    Raises:
        UsageError: The path has another form.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise UsageError(
            f"checkpoint path {path!r} is not of the form 'tinker://RUN/weights/NAME' or "
            "'tinker://RUN/sampler_weights/NAME'"
        )
    return match["run"]


def plan_sampler_deletions(
    listed: Iterable[Listed],
    *,
    keep_last: int,
    pinned: Mapping[str, str],
    exported: Mapping[str, str],
    known: Collection[str],
    now: datetime,
    least_age: timedelta,
) -> DeletionPlan:
    """Decide on the sampler weights of one run.

    The newest one always stays; so do pinned and published ones, and those of unknown date.

    Args:
        listed: All sampler weights of the run, in any order.
        keep_last: How many of the newest to keep.
        pinned: Path to reason, of those that are pinned.
        exported: Path to reason, of those that are being exported or published.
        known: Tinker runs that this machine's journal knows: nobody trains them now.
        now: The service's date.
        least_age: Of a Tinker run that is not known, younger ones stay.
    """
    dated = sorted(
        {each.path: each for each in listed}.values(),
        # What has no date fills no place: it stays anyway.
        key=lambda each: (each.stored_at is not None, each.stored_at or now, each.path),
        reverse=True,
    )
    kept = {each.path for each in dated[: max(1, keep_last)]}

    def decided(each: Listed) -> PlannedCheckpoint:
        stored, source = each.stored_at, each.source
        keep = None
        if each.path in pinned:
            keep = f"pinned: {pinned[each.path]}"
        elif each.path in exported:
            keep = exported[each.path]
        elif stored is None or source is None:
            keep = "nobody says when it was stored"
        elif source.public:
            keep = "published"
        elif each.path in kept:
            keep = "one of the newest"
        elif run_id_of_any(each.path) not in known and stored > now - least_age:
            keep = "young, and of a run that is not in this machine's journal"
        return PlannedCheckpoint(
            each.path,
            delete=keep is None,
            reason=keep or "no rule keeps it",
            step=None,
            size_bytes=each.size_bytes,
        )

    return DeletionPlan(tuple(decided(each) for each in dated))
