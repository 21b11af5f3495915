"""Whether a checkpoint is valid, in five levels of rising cost. Pure but for the last.

1. ``metadata``: its metadata is complete and consistent. Costs nothing.
2. ``listing``: the service lists it, it does not expire soon, its size has not changed.
3. ``weights``: the service's weights_info fits the run. One small request.
4. ``canary``: once restored, it answers as when it was saved. A session.
5. ``bytes``: its files on disk are whole. A download.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, Self

import tinker

from tinker_recovery.checkpoints.canary import DIFFERENT_BEYOND, Canary
from tinker_recovery.checkpoints.contradiction import contradicts_itself
from tinker_recovery.checkpoints.files import FileFacts, inspect_file
from tinker_recovery.checkpoints.record import CheckpointRecord, Listed
from tinker_recovery.checkpoints.safetensors_header import DamagedFile
from tinker_recovery.errors import UsageError
from tinker_recovery.telemetry.text import counted

EXPIRY_MARGIN = timedelta(minutes=5)
"""A checkpoint this close to its expiry may be gone before the service has loaded it."""

Level = Literal["metadata", "listing", "weights", "canary", "bytes"]
"""How deep a check looks, in rising cost."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one level.

    Attributes:
        level: Which level.
        ok: Whether nothing was found against the checkpoint.
        reason: What is wrong with the checkpoint, or what was found in order; for people.
        looked: Whether it could be looked at. If not, ``ok`` says nothing, and ``reason`` why not.
    """

    level: Level
    ok: bool
    reason: str
    looked: bool = True


def first_objection(checks: Iterable[Callable[[], Finding]]) -> Finding | None:
    """Run checks, the cheapest first, up to the first that fails; None if all pass."""
    return next((finding for check in checks if not (finding := check()).ok), None)


def check_metadata(
    listed: Listed, *, lineage: str | None = None, parent: CheckpointRecord | None = None
) -> Finding:
    """Level 1: its metadata.

    Args:
        listed: The checkpoint as listed.
        lineage: The run it should belong to; None for any.
        parent: The record of its parent checkpoint, if known.
    """
    problem = _metadata_problem(listed, lineage, parent)
    return Finding("metadata", problem is None, problem or "complete and consistent")


def _metadata_problem(
    listed: Listed, lineage: str | None, parent: CheckpointRecord | None
) -> str | None:
    record = listed.record
    if record is None:
        return listed.problem or "it has no tinker_recovery metadata"
    empty = [name for name in ("lineage", "attempt") if not getattr(record, name)]
    if empty:
        return f"its {' and '.join(empty)} is empty"
    if lineage is not None and record.lineage != lineage:
        return f"it belongs to lineage {record.lineage}, and the run is {lineage}"
    if (problem := contradicts_itself(record)) is not None:
        return problem
    if (
        parent is not None
        and record.parent == parent.path
        and record.lineage == parent.lineage
        and record.step < parent.step
    ):
        return f"its step is {record.step}, below step {parent.step} of its parent"
    return None


def check_listing(
    path: str,
    listed: Mapping[str, Listed],
    *,
    now: datetime,
    recorded_size: int | None = None,
) -> Finding:
    """Level 2: how the service lists it.

    Args:
        path: The checkpoint's path.
        listed: The newest listing, by path.
        now: The date, with a time zone.
        recorded_size: Its size in bytes when it was first seen, if it was.
    """
    problem = _listing_problem(listed.get(path), now, recorded_size)
    return Finding("listing", problem is None, problem or "listed, not expiring, of the same size")


def _listing_problem(listed: Listed | None, now: datetime, recorded_size: int | None) -> str | None:
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
    """What kind of weights a checkpoint has. None where the service does not say.

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
    """Level 3: whether the weights fit the run. What is None on either side is not compared."""
    differing = [
        f"{name} is {found!r}, and the run has {own!r}"
        for name in WeightsFacts.__slots__
        if (found := getattr(facts, name)) is not None
        and (own := getattr(expected, name)) is not None
        and found != own
    ]
    return Finding("weights", not differing, "; ".join(differing) or "they fit the run")


def check_canary(
    record: CheckpointRecord, seen: Canary, *, prompt: str = "", tolerance: float = 0.0
) -> Finding:
    """Level 4: whether the restored model answers as it did. Passes if no canary was stored.

    Args:
        record: The checkpoint.
        seen: The fingerprint taken after restoring it.
        prompt: Digest of what was asked; an answer stored for another prompt is not compared with.
        tolerance: Largest absolute difference of a logprob; 0 requires equality to the bit. What
            the service's noise explains passes as well.
    """
    if record.canary is None:
        return Finding("canary", ok=True, reason="no canary was stored with it")
    about = record.canary_about
    if about is not None:
        if prompt and about.digest != prompt:
            return Finding("canary", ok=True, reason="the canary stored with it was another one")
        tolerance = max(tolerance, DIFFERENT_BEYOND * about.noise)
    try:
        stored = Canary.parse(record.canary)
    except UsageError as error:
        return Finding("canary", ok=False, reason=str(error))
    if stored == seen:
        return Finding("canary", ok=True, reason="the logprobs are equal to the bit")
    difference = stored.distance_to(seen)
    return Finding(
        "canary",
        tolerance > 0 and difference <= tolerance,
        f"the logprobs differ by up to {difference:g}; {tolerance:g} is allowed",
    )


def check_bytes(files: Iterable[Path]) -> tuple[Finding, dict[Path, FileFacts]]:
    """Level 5: whether the files are whole. Reads them: call it in a worker thread.

    Args:
        files: The safetensors files.

    Returns:
        The finding, and what to record of each file that is whole.

    Raises:
        OSError: A file is there and cannot be read: that says nothing about the checkpoint.
    """
    facts: dict[Path, FileFacts] = {}
    for path in files:
        try:
            facts[path] = inspect_file(path)
        except DamagedFile as error:
            return Finding("bytes", ok=False, reason=f"{path.name}: {error}"), facts
    if not facts:
        return Finding("bytes", ok=False, reason="it has no files"), facts
    total = sum(each.size_bytes for each in facts.values())
    reason = f"{total} bytes in {counted(len(facts), 'file')} are whole"
    return Finding("bytes", ok=True, reason=reason), facts
