"""Deleting one checkpoint, step by step, so that a crash at any point loses nothing but time.

The intent is written before the deed. For each path the entries of the journal go

    intended -> deleting -> deleted
                         -> failed (tried again later: intended)
    intended, deleting, failed -> withdrawn (a newer plan keeps it)

and ``Delete`` is only ever told for a path whose ``deleting`` entry is written. Each call of
:meth:`DeletionLedger.commands` gets a plan made just now, so after a restart, with an old intent
in the journal, nothing is deleted that has become worth keeping meanwhile. Once a request may have
been sent its path may be gone at any moment: :meth:`DeletionLedger.being_deleted` names those, for
planning and selection to leave alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, Self

from tinker_recovery.checkpoints.deletion_plan import DeletionPlan, PlannedCheckpoint
from tinker_recovery.errors import UsageError

State = Literal["intended", "deleting", "deleted", "failed", "withdrawn"]
"""How far a deletion has come."""

_STATES = ("intended", "deleting", "deleted", "failed", "withdrawn")

RETRY_S = 30.0
"""Seconds before the first retry of a failed deletion; doubled for each further one."""

MAX_RETRY_S = 3600.0
"""Upper limit of that delay."""

SETTLE_S = 600.0
"""A request without an answer may still be carried out for this long after it was given up."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """One line of the journal: how the deletion of one path stands.

    Attributes:
        path: The checkpoint's ``tinker://`` path.
        state: See :data:`State`.
        reason: Why it is deleted, why it failed, or why it was withdrawn.
        at_s: Seconds since the epoch at which it was written; wall time, for it outlives us.
        size_bytes: Its size, where known.
        failures: Failed tries so far.
        sent: Whether a request to delete it may have been sent.
    """

    path: str
    state: State
    reason: str
    at_s: float
    size_bytes: int | None = None
    failures: int = 0
    sent: bool = False

    def to_line(self) -> str:
        """The entry as one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Self:
        """What :meth:`to_line` wrote.

        Raises:
            UsageError: It is something else.
        """
        try:
            entry = cls(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{line[:200]!r} is not a deletion's line: {error}") from error
        if entry.state not in _STATES:
            raise UsageError(
                f"state {entry.state!r} of {entry.path} is none of {', '.join(_STATES)}"
            )
        return entry

    def retry_due(self, now_s: float) -> bool:
        """Whether a failed one may be tried again.

        A clock set back since it failed does not put it off: waiting is a courtesy to the service.
        """
        return not self.at_s <= now_s < self.retry_at_s

    @property
    def retry_at_s(self) -> float:
        """When a failed one is to be tried again, in seconds since the epoch."""
        return self.at_s + min(MAX_RETRY_S, RETRY_S * 2.0 ** min(self.failures - 1, 64))


@dataclass(frozen=True, slots=True)
class Write:
    """Write this entry to the journal, and only once that is on disk apply it.

    Attributes:
        entry: What to write; then go on with ``ledger.applied(entry)``.
    """

    entry: Deletion


@dataclass(frozen=True, slots=True)
class Delete:
    """Ask the service to delete this path; then write :func:`outcome`. Safe to repeat.

    Attributes:
        entry: The ``deleting`` entry it belongs to.
    """

    entry: Deletion

    @property
    def path(self) -> str:
        """The checkpoint's ``tinker://`` path."""
        return self.entry.path


Command = Write | Delete
"""What the keeper has to do next about one path."""


def outcome(command: Delete, status_code: int | None, *, now_s: float) -> Write:
    """The entry to write once the service has answered.

    Args:
        command: What was asked.
        status_code: Its HTTP status; None if no answer came. 404 is success: it is gone.
        now_s: Seconds since the epoch.
    """
    entry = command.entry
    if status_code == 404:  # noqa: PLR2004 - HTTP's own number
        return _write(entry, "deleted", "it was gone already", now_s)
    if status_code is not None and 200 <= status_code < 300:  # noqa: PLR2004 - the same
        return _write(entry, "deleted", entry.reason, now_s)
    said = "no answer came" if status_code is None else f"the service answered {status_code}"
    return _write(entry, "failed", said, now_s, failures=entry.failures + 1)


@dataclass(frozen=True, slots=True)
class DeletionLedger:
    """Every deletion this run ever intended, by path. Frozen: methods return the next one.

    Attributes:
        entries: The newest entry of each path.
    """

    entries: Mapping[str, Deletion] = field(default_factory=dict)

    @classmethod
    def from_lines(cls, lines: Iterable[str]) -> Self:
        """Read it back from the journal: the last entry of each path counts.

        Raises:
            UsageError: A line is not one of ours. A last line cut short by a crash is for whoever
                reads the journal to drop: its entry was never applied.
        """
        return cls({entry.path: entry for entry in map(Deletion.from_line, lines)})

    def applied(self, entry: Deletion) -> Self:
        """The ledger with this entry, which is on disk by now."""
        return type(self)({**self.entries, entry.path: entry})

    def being_deleted(self, *, now_s: float) -> Collection[str]:
        """Paths a request of ours may still remove: nothing may rely on them.

        One that was withdrawn, or was missing from a listing, is among them until the request must
        have been carried out or lost; if it is listed after that, it has survived. A clock set
        forward shortens that time.
        """
        return {
            path
            for path, entry in self.entries.items()
            if entry.sent
            and not (entry.state in {"withdrawn", "deleted"} and now_s >= entry.at_s + SETTLE_S)
        }

    def commands(self, plan: DeletionPlan, *, now_s: float) -> list[Command]:
        """The next command for each path about which there is something to do.

        Args:
            plan: Made just now, from a complete listing read just now, with :meth:`being_deleted`
                in its situation.
            now_s: Seconds since the epoch.
        """
        rows = {row.path: row for row in plan.rows}
        commands: list[Command] = []
        for path, entry in sorted(self.entries.items()):
            if entry.state in {"intended", "deleting", "failed"}:
                command = _continued(entry, rows.get(path), now_s)
                if command is not None:
                    commands.append(command)
        for row in plan.deletions:
            known = self.entries.get(row.path)
            # One that was deleted and is listed again was saved anew, or the listing lags: either
            # way the plan, made from that listing, decides.
            if known is None:
                known = Deletion(row.path, "withdrawn", "", now_s, row.size_bytes)
            if known.state in {"withdrawn", "deleted"}:
                commands.append(_write(known, "intended", row.reason, now_s))
        return commands


def _continued(entry: Deletion, row: PlannedCheckpoint | None, now_s: float) -> Command | None:
    if row is None:
        return _write(entry, "deleted", "it is no longer listed", now_s)
    if not row.delete:
        return _write(entry, "withdrawn", f"now kept: {row.reason}", now_s, failures=0)
    if entry.state == "deleting":
        return Delete(entry)
    if entry.state == "intended":
        return _write(entry, "deleting", row.reason, now_s, sent=True)
    if entry.retry_due(now_s):
        return _write(entry, "intended", row.reason, now_s)
    return None


def _write(
    entry: Deletion,
    state: State,
    reason: str,
    now_s: float,
    *,
    failures: int | None = None,
    sent: bool | None = None,
) -> Write:
    """The entry that follows on this one."""
    return Write(
        replace(
            entry,
            state=state,
            reason=reason,
            at_s=now_s,
            failures=entry.failures if failures is None else failures,
            sent=entry.sent if sent is None else sent,
        )
    )
