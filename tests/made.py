"""Records made up for tests."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tinker import types

from tinker_recovery.checkpoints import CheckpointRecord, Listed, SavedBy, Segment

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LINEAGE = "mine"


def path(run: str, step: int) -> str:
    return f"tinker://{run}/weights/{step}"


def record(  # noqa: PLR0913 - a record's fields, by name
    step: int,
    run: str = "a",
    *,
    lineage: str = LINEAGE,
    attempt: str | None = None,
    saved_by: SavedBy = "schedule",
    metrics: Mapping[str, float] | None = None,
    expires_in_s: float | None = None,
    public: bool = False,
    size_bytes: int | None = 10,
    time: datetime | None = None,
    parent: str | None = None,
) -> CheckpointRecord:
    return CheckpointRecord(
        path=path(run, step),
        run_id=run,
        step=step,
        lineage=lineage,
        attempt=attempt or run,
        parent=parent,
        saved_by=saved_by,
        time=time or NOW + timedelta(seconds=step),
        size_bytes=size_bytes,
        expires_at=None if expires_in_s is None else NOW + timedelta(seconds=expires_in_s),
        public=public,
        metrics=metrics or {},
    )


def listed_json(
    made: CheckpointRecord, metadata: Mapping[str, str], **changes: object
) -> dict[str, Any]:
    """A training checkpoint as the service lists it, in JSON."""
    return {
        "checkpoint_id": f"weights/{made.step}",
        "checkpoint_type": "training",
        "time": made.time.isoformat(),
        "tinker_path": made.path,
        "size_bytes": 10,
        "user_metadata": dict(metadata),
        **changes,
    }


def stored(
    metadata: dict[str, str] | None,
    *,
    kind: types.CheckpointType = "training",
    expires_at: datetime | None = None,
    size_bytes: int | None = 10,
) -> types.Checkpoint:
    """A checkpoint as the service lists it."""
    return types.Checkpoint(
        checkpoint_id="weights/c",
        checkpoint_type=kind,
        time=NOW,
        tinker_path="tinker://run/weights/c",
        size_bytes=size_bytes,
        user_metadata=metadata,
        expires_at=expires_at,
    )


def listed(step: int, run: str = "a", **fields: object) -> Listed:
    return Listed.of(record(step, run, **fields))  # type: ignore[arg-type]  # passed through by name


def segment(run: str, start: int = 0, parent: str | None = None) -> Segment:
    return Segment(run, run, start, parent)
