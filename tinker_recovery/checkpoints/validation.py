"""Whether a checkpoint can be trusted, in five levels of rising cost. Pure but for the last.

1. ``metadata``: what it says of itself is complete and consistent. Costs nothing.
2. ``listing``: the service lists it, it does not expire, its size is the one recorded.
3. ``weights``: the service's weights_info fits the run. One small request.
4. ``canary``: after restoring, it answers as it did when it was saved. A session.
5. ``bytes``: its files on disk are whole. A download.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, Self

import tinker

from tinker_recovery.checkpoints.canary import Canary, compare
from tinker_recovery.checkpoints.files import FileFacts, inspect_file
from tinker_recovery.checkpoints.record import CheckpointRecord, Listed
from tinker_recovery.checkpoints.safetensors_header import DamagedFile
from tinker_recovery.errors import UsageError

EXPIRY_MARGIN = timedelta(minutes=5)
"""A checkpoint this close to its end may be gone before the service has loaded it."""

Level = Literal["metadata", "listing", "weights", "canary", "bytes"]
"""How deep a check looks, in rising cost."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one level found.

    Attributes:
        level: Which level.
        ok: Whether nothing speaks against the checkpoint.
        reason: In words: what speaks against it, or what was found in order.
    """

    level: Level
    ok: bool
    reason: str


def first_objection(checks: Iterable[Callable[[], Finding]]) -> Finding | None:
    """Run checks, the cheapest first, up to the first objection; None if there is none."""
    return next((verdict for check in checks if not (verdict := check()).ok), None)


def check_metadata(
    listed: Listed, *, lineage: str | None = None, parent: CheckpointRecord | None = None
) -> Finding:
    """Level 1: what it says of itself.

    Args:
        listed: The checkpoint as listed.
        lineage: The run it should belong to; None for any.
        parent: The record of the checkpoint it says its attempt started from, if at hand.
    """
    return _verdict(
        "metadata", _metadata_objection(listed, lineage, parent), "complete and consistent"
    )


def _metadata_objection(
    listed: Listed, lineage: str | None, parent: CheckpointRecord | None
) -> str | None:
    record = listed.record
    if record is None:
        return listed.problem or "it says nothing of itself"
    empty = [name for name in ("lineage", "attempt") if not getattr(record, name)]
    if empty:
        return f"its {' and '.join(empty)} is empty"
    if lineage is not None and record.lineage != lineage:
        return f"it belongs to lineage {record.lineage}, and the run is {lineage}"
    if record.parent == record.path:
        return "it names itself as what it descends from"
    if (
        parent is not None
        and record.parent == parent.path
        and record.lineage == parent.lineage
        and record.step < parent.step
    ):
        return f"it says step {record.step}, and descends from step {parent.step}"
    return None


def check_listing(
    path: str,
    listed: Mapping[str, Listed],
    *,
    now: datetime,
    recorded_size: int | None = None,
) -> Finding:
    """Level 2: what the service says of it.

    Args:
        path: The checkpoint's path.
        listed: The newest listing, by path.
        now: The date, with a time zone.
        recorded_size: Its size in bytes when it was first seen, if it was.
    """
    return _verdict(
        "listing",
        _listing_objection(listed.get(path), now, recorded_size),
        "listed, lasting, of the size recorded",
    )


def _listing_objection(
    listed: Listed | None, now: datetime, recorded_size: int | None
) -> str | None:
    if listed is None:
        return "the service does not list it"
    if listed.expires_at is not None and listed.expires_at <= now + EXPIRY_MARGIN:
        return f"it expires at {listed.expires_at:%Y-%m-%d %H:%M:%S %Z}, too soon to load it safely"
    size = listed.size_bytes
    if size is not None and size <= 0:
        return f"the service reports its size as {size} bytes"
    if None not in (size, recorded_size) and size != recorded_size:
        return f"the service reports its size as {size} bytes, and {recorded_size} are on record"
    return None


@dataclass(frozen=True, slots=True)
class WeightsFacts:
    """What a checkpoint's weights are. None where the service does not say.

    Attributes:
        base_model: Name of the base model.
        lora_rank: Rank of the adapter.
        train_attn: Whether attention is trained.
        train_mlp: Whether the MLPs are trained.
        train_unembed: Whether the unembedding is trained.
    """

    base_model: str | None = None
    lora_rank: int | None = None
    train_attn: bool | None = None
    train_mlp: bool | None = None
    train_unembed: bool | None = None

    @classmethod
    def of(cls, info: tinker.types.WeightsInfoResponse) -> Self:
        """From the service's answer to weights_info."""
        return cls(
            info.base_model, info.lora_rank, info.train_attn, info.train_mlp, info.train_unembed
        )


def check_weights(facts: WeightsFacts, expected: WeightsFacts) -> Finding:
    """Level 3: whether the weights fit the run. What either side does not say is no objection."""
    differing = [
        f"{name} is {said!r}, and the run has {own!r}"
        for name in WeightsFacts.__slots__
        if (said := getattr(facts, name)) is not None
        and (own := getattr(expected, name)) is not None
        and said != own
    ]
    return _verdict("weights", "; ".join(differing) or None, "they fit the run")


def check_canary(record: CheckpointRecord, seen: Canary, *, tolerance: float = 0.0) -> Finding:
    """Level 4: whether the restored model answers as it did. Without a stored canary, it passes.

    Args:
        record: The checkpoint.
        seen: The fingerprint taken after restoring it.
        tolerance: Largest absolute difference of a number; 0 asks for equality to the bit.
    """
    if record.canary is None:
        return Finding("canary", ok=True, reason="no canary was stored with it")
    try:
        found = compare(Canary.parse(record.canary), seen, tolerance=tolerance)
    except UsageError as error:
        return Finding("canary", ok=False, reason=str(error))
    ok = found.result == "exact" or (tolerance > 0 and found.result == "close")
    return Finding(
        "canary",
        ok,
        f"{found.result}: off by up to {found.difference:g}, {tolerance:g} is allowed",
    )


def check_bytes(
    files: Mapping[Path, FileFacts | None], *, size_bytes: int | None = None
) -> tuple[Finding, dict[Path, FileFacts]]:
    """Level 5: whether the files are whole. Reads them: call it in a worker thread.

    Args:
        files: Each safetensors file, with what was recorded when it was first seen, or None.
        size_bytes: Size of the one file, as the service says; passed over if there are several,
            for what the service counts is their sum.

    Returns:
        The verdict, and what to record of each file that was found whole.

    Raises:
        OSError: A file is there and cannot be read: that says nothing about the checkpoint.
    """
    if not files:
        return Finding("bytes", ok=False, reason="it has no files"), {}
    facts: dict[Path, FileFacts] = {}
    single = size_bytes if len(files) == 1 else None
    for path, recorded in files.items():
        try:
            facts[path] = inspect_file(path, recorded, size_bytes=single)
        except DamagedFile as error:
            return Finding("bytes", ok=False, reason=f"{path.name}: {error}"), facts
    total = sum(each.size_bytes for each in facts.values())
    return Finding("bytes", ok=True, reason=f"{total} bytes in {len(facts)} files are whole"), facts


def _verdict(level: Level, against: str | None, otherwise: str) -> Finding:
    return Finding(level, against is None, otherwise if against is None else against)
