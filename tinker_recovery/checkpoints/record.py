"""Checkpoint records: the metadata stored with a checkpoint, and reading it from a listing.

Everything a resume needs is in the checkpoint's ``user_metadata`` at the service, as strings, so
any machine with the API key can read it from a listing alone.
"""

from __future__ import annotations

import json
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
    STATE_MISSING,
    check_format,
    decode_metrics,
    encode_loop_state,
    encode_metrics,
)
from tinker_recovery.checkpoints.prompt import PromptFacts
from tinker_recovery.errors import InvalidMetadata, UsageError

_PATH = re.compile(r"tinker://(?P<run>[^/\s]+)/weights/[^/\s]+")

SavedBy = Literal["schedule", "user"]
"""Who asked for the save: our schedule, or the user's own ``save_state``."""


def run_id_of(path: str) -> str:
    """The Tinker run id in a ``tinker://RUN/weights/NAME`` path.

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


def run_id_unchecked(path: str) -> str:
    """The same of a path of any kind, to be compared with known run ids: never raises."""
    return path.removeprefix("tinker://").partition("/")[0]


def checkpoint_metadata(  # noqa: PLR0913 - a checkpoint's facts, by name
    *,
    step: int,
    lineage: str,
    attempt: str,
    parent: str | None,
    saved_by: SavedBy,
    run_name: str | None = None,
    origin: Mapping[str, Any] | None = None,
    ended: bool = False,
    epoch: int | None = None,
    metrics: Mapping[str, float] | None = None,
    loop_state: object = None,
    sound_step: int | None = None,
    previous_canary: tuple[int, str] | None = None,
    canary_prompt: PromptFacts | None = None,
    previous_save_s: float | None = None,
    trail: str | None = None,
    job: str | None = None,
) -> dict[str, str]:
    """The ``user_metadata`` to save with a checkpoint. What is None is left out.

    Args:
        step: Optimizer steps in the weights.
        lineage: Id of the logical run, which lives in one or more Tinker runs.
        attempt: Id of the attempt that saves it.
        parent: Path of the checkpoint the attempt started from; None if it started without one.
        saved_by: Who asked for the save.
        run_name: The name the user gave the run.
        origin: How the run starts, as the journal keeps it, and its first step.
        ended: Whether the loop had come to its end, and all of it is known to have succeeded.
        epoch: Epochs completed.
        metrics: The newest metrics, by name.
        loop_state: The user's own state of the loop, as JSON can represent it.
        sound_step: The step up to which every request of the attempt was known to have succeeded
            when the save was submitted.
        previous_canary: Step and fingerprint (see ``checkpoints.canary``) of this attempt's newest
            save whose canary has answered. Its own canary runs after the save, too late for it.
        canary_prompt: What is known of the prompt that fingerprint belongs to.
        previous_save_s: Seconds the previous save took, for the same reason.
        trail: What its weights were made of, see ``checkpoints.trail``.
        job: Which job, and which try of it, trains the run; None if it is no job's.

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
        "origin": None if origin is None else json.dumps(dict(origin), separators=(",", ":")),
        "ended": "yes" if ended else None,
        "epoch": None if epoch is None else str(epoch),
        "metrics": encode_metrics(metrics) if metrics else None,
        "loop_state": None if loop_state is None else encode_loop_state(loop_state),
        "sound_step": None if sound_step is None else str(sound_step),
        "previous_canary": previous_canary and "{}:{}".format(*previous_canary),
        "canary_prompt": None if canary_prompt is None else str(canary_prompt),
        "previous_save_s": None if previous_save_s is None else repr(float(previous_save_s)),
        "trail": trail,
        "job": job,
    }
    return {PREFIX + key: value for key, value in fields.items() if value is not None}


class CheckpointRecord(BaseModel):
    """One training checkpoint that tinker_recovery saved: its metadata and its listing.

    Attributes:
        path: ``tinker://RUN/weights/NAME``.
        run_id: The Tinker run that saved it.
        step: Optimizer steps in the weights.
        lineage: Id of the logical run it belongs to.
        attempt: Id of the attempt that saved it.
        parent: Path of the checkpoint the attempt started from; None if it started without one.
        saved_by: Who asked for the save.
        time: When the service stored it.
        size_bytes: Its size; None where the service does not report it.
        expires_at: When the service will delete it; None for never.
        public: Whether it is published.
        run_name: The name the user gave the run, or None.
        origin: How the run starts, as the journal keeps it, and its ``start_step``: with what
            another start of its name is compared. None if an earlier version saved it.
        ended: Whether it was saved at the end of the loop, and everything before it is known to
            have succeeded.
        epoch: Epochs completed, or None if the loop reported none.
        metrics: The newest metrics when it was saved; values may be NaN or infinite.
        loop_state: The user's own state of the loop, or None.
        sound_step: The step up to which every request of its attempt was known to have succeeded
            when it was submitted: what it vouches for. None if an earlier version saved it.
        canary: Fingerprint of the canary's answer on its weights, or None. It is stored with a
            later checkpoint of the same attempt; :func:`with_canaries` fills it in.
        canary_about: What was known of the prompt it belongs to; None if nothing was.
        previous_canary: Step and fingerprint of an earlier checkpoint of the attempt, or None.
        canary_prompt: What was known of the run's prompt when it was saved, or None.
        previous_save_s: Seconds the previous save took, or None.
        trail: What its weights were made of (``checkpoints.trail``), or None: the run had recalled
            nothing by then.
        job: Which job, and which try of it, saved it; None if it is no job's.
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
    origin: Mapping[str, Any] | None = None
    ended: bool = False
    epoch: int | None = None
    metrics: Mapping[str, float] = Field(default_factory=dict)
    loop_state: Any = None
    sound_step: int | None = None
    canary: str | None = None
    canary_about: PromptFacts | None = None
    previous_canary: tuple[int, str] | None = None
    canary_prompt: PromptFacts | None = None
    previous_save_s: float | None = None
    trail: str | None = None
    job: str | None = None

    @classmethod
    def from_listing(cls, listed: tinker.types.Checkpoint) -> Self | None:
        """Read a listed checkpoint; None unless it is a training checkpoint with our metadata.

        Raises:
            InvalidMetadata: Our metadata in it is broken, or of an unknown format.
        """
        stored = listed.user_metadata or {}
        if listed.checkpoint_type != "training" or PREFIX + "format" not in stored:
            return None
        begin = len(PREFIX)
        fields = {key[begin:]: stored[key] for key in stored if key.startswith(PREFIX)}
        if STATE_MISSING in fields:
            raise InvalidMetadata(
                f"checkpoint {listed.tinker_path} was saved with a loop state or epochs, which the "
                "service did not keep and this journal does not know, so the loop cannot be "
                "continued from it: use the journal of the machine that saved it"
            )
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
                origin=json.loads(fields["origin"]) if "origin" in fields else None,
                ended="ended" in fields,
                epoch=_count("epoch", fields["epoch"]) if "epoch" in fields else None,
                metrics=decode_metrics(fields["metrics"]) if "metrics" in fields else {},
                loop_state=json.loads(fields["loop_state"]) if "loop_state" in fields else None,
                sound_step=(
                    _count("sound_step", fields["sound_step"]) if "sound_step" in fields else None
                ),
                previous_canary=(
                    _step_and_rest(fields["previous_canary"])
                    if "previous_canary" in fields
                    else None
                ),
                canary_prompt=(
                    PromptFacts.parse(fields["canary_prompt"])
                    if "canary_prompt" in fields
                    else None
                ),
                previous_save_s=(
                    float(fields["previous_save_s"]) if "previous_save_s" in fields else None
                ),
                trail=fields.get("trail"),
                job=fields.get("job"),
            )
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise InvalidMetadata(
                f"the tinker_recovery metadata of checkpoint {listed.tinker_path} cannot be read "
                f"({error!r}), so it is not used for recovery"
            ) from error


def with_canaries(records: Iterable[CheckpointRecord]) -> list[CheckpointRecord]:
    """The same records in the same order, each with the fingerprint stored with a later one."""
    records = list(records)
    stored_later = {
        (record.attempt, record.previous_canary[0]): {
            "canary": record.previous_canary[1],
            "canary_about": record.canary_prompt,
        }
        for record in records
        if record.previous_canary is not None
    }
    return [
        record if said is None else record.model_copy(update=said)
        for record in records
        for said in (stored_later.get((record.attempt, record.step)),)
    ]


def _step_and_rest(text: str) -> tuple[int, str]:
    step, _, rest = text.partition(":")
    return _count("previous_canary", step), rest


def _aware(date: datetime) -> datetime:
    """A date without a time zone cannot be compared with ours; the service means UTC."""
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _count(field: str, text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(f"{field} {number} is negative")
    return number


@dataclass(frozen=True, slots=True)
class Listed:
    """One checkpoint as the service lists it, ours or not.

    Retention decides over these: it must see what it cannot read, in order to keep it.

    Attributes:
        path: Its ``tinker://`` path.
        record: Its metadata; None if it has none of ours, or it cannot be read.
        problem: Why there is no record, for people; None if there is one.
        size_bytes: Its size; None where the service does not report it.
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

    @property
    def rewritable(self) -> bool:
        """Whether another save may take its place: the schedule uses no name twice."""
        return self.record is None or self.record.saved_by == "user"

    def has_content_of(self, other: Listed) -> bool:
        """Whether both entries of one path are of the same save: no other has taken its place."""
        return self._identity() == other._identity()

    def _identity(self) -> tuple[object, ...]:
        said: object = self.source and self.source.user_metadata
        if self.record is not None:
            # As text: a metric that is NaN is equal to itself there. How long it lives, and for
            # whom, may change; its canary is another save's word.
            said = repr(self.record.model_dump(exclude={"canary", "expires_at", "public"}))
        return self.path, self.stored_at, self.size_bytes, said

    @classmethod
    def of(cls, record: CheckpointRecord) -> Self:
        """From a record that was read before."""
        return cls(record.path, record, size_bytes=record.size_bytes)

    @classmethod
    def read(cls, listed: tinker.types.Checkpoint) -> Self:
        """From a listing; never raises: an error goes to ``problem``."""
        record, problem = None, None
        try:
            record = CheckpointRecord.from_listing(listed)
        except InvalidMetadata as error:
            problem = str(error)
        if record is None and problem is None:
            problem = (
                "it has no tinker_recovery metadata"
                if listed.checkpoint_type == "training"
                else f"it is a {listed.checkpoint_type} checkpoint, not a training one"
            )
        return cls(listed.tinker_path, record, problem, listed.size_bytes, listed)
