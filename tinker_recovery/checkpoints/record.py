"""What a checkpoint says of itself.

Everything a resume needs travels in the checkpoint's ``user_metadata`` on the service, as strings,
so any machine with the API key can read it back from a listing alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self

import tinker
from pydantic import BaseModel, ConfigDict, Field

from tinker_recovery.checkpoints.metadata import (
    FORMAT,
    PREFIX,
    check_format,
    decode_loop_state,
    decode_metrics,
    encode_loop_state,
    encode_metrics,
)
from tinker_recovery.errors import InvalidMetadata, UsageError

_PATH = re.compile(r"tinker://(?P<run>[^/\s]+)/weights/[^/\s]+")

SavedBy = Literal["schedule", "user"]
"""Who asked for the save: our schedule, or the user's own ``save_state``."""


def run_id_of(path: str) -> str:
    """The Tinker run id inside a ``tinker://RUN/weights/NAME`` path.

    Raises:
        UsageError: The path has another form.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise UsageError(
            f"checkpoint path {path!r} is not of the form 'tinker://RUN/weights/NAME', the path "
            "that save_state returns"
        )
    return match["run"]


def checkpoint_metadata(  # noqa: PLR0913 - a checkpoint's facts, by name
    *,
    step: int,
    lineage: str,
    attempt: str,
    parent: str | None,
    saved_by: SavedBy,
    run_name: str | None = None,
    epoch: int | None = None,
    metrics: Mapping[str, float] | None = None,
    loop_state: object = None,
    previous_canary: tuple[int, str] | None = None,
    previous_save_s: float | None = None,
) -> dict[str, str]:
    """The ``user_metadata`` to save with a checkpoint. What is None is left out.

    Args:
        step: Optimizer steps contained in the weights.
        lineage: Id of the logical run, which spans many Tinker run ids.
        attempt: Id of the attempt that saves it.
        parent: Path of the checkpoint that attempt started from, or None if it began afresh.
        saved_by: Who asked for the save.
        run_name: The name the user gave the run, by which it is found again.
        epoch: Epochs completed.
        metrics: The newest metrics, by name.
        loop_state: The user's own state of the loop, as JSON can hold it.
        previous_canary: Step and fingerprint (see ``checkpoints.canary``) of the newest save of
            this attempt whose canary has answered; its own is asked behind it and not known yet.
        previous_save_s: Seconds the save before this one took; its own is not known yet.

    Raises:
        UsageError: ``metrics`` or ``loop_state`` cannot be stored, or are too large.
    """
    fields = {
        "format": FORMAT,
        "lineage": lineage,
        "attempt": attempt,
        "step": str(step),
        "saved_by": saved_by,
        "parent": parent,
        "run_name": run_name,
        "epoch": None if epoch is None else str(epoch),
        "metrics": encode_metrics(metrics) if metrics else None,
        "loop_state": None if loop_state is None else encode_loop_state(loop_state),
        "previous_canary": None if previous_canary is None else _at_step(*previous_canary),
        "previous_save_s": None if previous_save_s is None else repr(float(previous_save_s)),
    }
    return {PREFIX + key: value for key, value in fields.items() if value is not None}


class CheckpointRecord(BaseModel):
    """One training checkpoint: where it is, and how far the run had come.

    Attributes:
        path: ``tinker://RUN/weights/NAME``.
        run_id: The Tinker run that saved it.
        step: Optimizer steps contained in the weights.
        lineage: The logical run it belongs to.
        attempt: The attempt that saved it.
        parent: Path of the checkpoint that attempt started from; None if it began afresh.
        saved_by: Who asked for the save.
        time: When the service stored it.
        size_bytes: Its size, where the service says.
        expires_at: When the service will delete it; None for never.
        public: Whether it was published.
        run_name: The name the user gave the run, or None.
        epoch: Epochs completed, where the loop said.
        metrics: The newest metrics when it was saved; values may be NaN or infinite.
        loop_state: The user's own state of the loop, or None.
        canary: Fingerprint of a forward pass on its weights, or None. Told by a later checkpoint of
            the same attempt, see :func:`with_canaries`.
        previous_canary: What it tells of an earlier one: its step and fingerprint.
        previous_save_s: Seconds the save before it took, or None.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    run_id: str
    step: int
    lineage: str
    attempt: str
    parent: str | None
    saved_by: SavedBy
    time: datetime
    size_bytes: int | None
    expires_at: datetime | None
    public: bool
    run_name: str | None = None
    epoch: int | None = None
    metrics: Mapping[str, float] = Field(default_factory=dict)
    loop_state: Any = None
    canary: str | None = None
    previous_canary: tuple[int, str] | None = None
    previous_save_s: float | None = None

    @classmethod
    def from_listing(cls, listed: tinker.types.Checkpoint) -> Self | None:
        """Read a listed checkpoint; None if it is not a training checkpoint, or not one of ours.

        Raises:
            InvalidMetadata: It carries our metadata, and that is broken or of an unknown format.
        """
        said = listed.user_metadata or {}
        if listed.checkpoint_type != "training" or PREFIX + "format" not in said:
            return None
        fields = {
            key.removeprefix(PREFIX): value for key, value in said.items() if key.startswith(PREFIX)
        }
        try:
            check_format(fields["format"])
            return cls(
                path=listed.tinker_path,
                run_id=run_id_of(listed.tinker_path),
                step=_count("step", fields["step"]),
                lineage=fields["lineage"],
                attempt=fields["attempt"],
                parent=fields.get("parent"),
                saved_by=fields["saved_by"],
                time=_aware(listed.time),
                size_bytes=listed.size_bytes,
                expires_at=listed.expires_at and _aware(listed.expires_at),
                public=listed.public,
                run_name=fields.get("run_name"),
                epoch=_count("epoch", fields["epoch"]) if "epoch" in fields else None,
                metrics=decode_metrics(fields.get("metrics", "{}")),
                loop_state=decode_loop_state(fields.get("loop_state", "null")),
                previous_canary=(
                    _of_step(fields["previous_canary"]) if "previous_canary" in fields else None
                ),
                previous_save_s=(
                    float(fields["previous_save_s"]) if "previous_save_s" in fields else None
                ),
            )
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise InvalidMetadata(
                f"checkpoint {listed.tinker_path} carries metadata of tinker_recovery that cannot "
                f"be read ({error!r}); it is not used for recovery"
            ) from error


def with_canaries(records: Iterable[CheckpointRecord]) -> list[CheckpointRecord]:
    """The same records in the same order, each with the fingerprint that another tells of it."""
    records = list(records)
    told = {
        (record.attempt, record.previous_canary[0]): record.previous_canary[1]
        for record in records
        if record.previous_canary is not None
    }
    return [
        record.model_copy(update={"canary": canary})
        if (canary := told.get((record.attempt, record.step))) is not None
        else record
        for record in records
    ]


def _at_step(step: int, said: str) -> str:
    return f"{step}:{said}"


def _of_step(said: str) -> tuple[int, str]:
    step, _, rest = said.partition(":")
    return _count("previous_canary", step), rest


def _aware(date: datetime) -> datetime:
    """The date with a time zone: one without cannot be compared with ours, and UTC is meant."""
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _count(field: str, said: str) -> int:
    number = int(said)
    if number < 0:
        raise ValueError(f"{field} {number} is negative")
    return number


@dataclass(frozen=True, slots=True)
class Listed:
    """One checkpoint as the service lists it, whether or not it is one of ours.

    Retention decides over these: what it cannot read it must still see, in order to keep it.

    Attributes:
        path: Its ``tinker://`` path.
        record: What it says of itself; None if that is nothing, or cannot be read.
        problem: Why there is no record, in words; None if there is one.
        size_bytes: Its size, where the service says.
        source: The service's own entry; None if only what was read from it is at hand.
    """

    path: str
    record: CheckpointRecord | None
    problem: str | None = None
    size_bytes: int | None = None
    source: tinker.types.Checkpoint | None = field(default=None, compare=False, repr=False)

    @property
    def expires_at(self) -> datetime | None:
        """When the service will delete it; None for never, or where that is not known."""
        if self.record is not None:
            return self.record.expires_at
        expires = None if self.source is None else self.source.expires_at
        return None if expires is None else _aware(expires)

    @property
    def stored_at(self) -> datetime | None:
        """When the service stored it; None where that is not known."""
        if self.record is not None:
            return self.record.time
        return None if self.source is None else _aware(self.source.time)

    @classmethod
    def of(cls, record: CheckpointRecord) -> Self:
        """The same, of a record read before."""
        return cls(record.path, record, size_bytes=record.size_bytes)

    @classmethod
    def read(cls, listed: tinker.types.Checkpoint) -> Self:
        """Read a listed checkpoint; never raises, what is wrong goes to ``problem``."""
        problem: str | None = None
        try:
            record = CheckpointRecord.from_listing(listed)
        except InvalidMetadata as error:
            record, problem = None, str(error)
        if record is None and problem is None:
            problem = (
                "it carries no metadata of ours"
                if listed.checkpoint_type == "training"
                else f"it is a {listed.checkpoint_type} checkpoint, not a training one"
            )
        return cls(listed.tinker_path, record, problem, listed.size_bytes, listed)
