"""Deleting checkpoints in steps that survive a crash at any point.

The intent is written before the request. The journal's entries for a path go

    intended -> deleting -> deleted
                         -> failed (retried later: intended)
    intended, deleting, failed -> withdrawn (a newer plan keeps it)

and a path is deleted only once its ``deleting`` entry is written. Each call of
:meth:`DeletionLedger.commands` takes a new plan, so an old intent found in the journal after a
restart deletes nothing that has become worth keeping. Once a request may have been sent, the
checkpoint may disappear at any moment: :meth:`DeletionLedger.being_deleted` names those, and
planning and selection do not rely on them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, get_args

from tinker_recovery.checkpoints.deletion_plan import DeletionPlan, PlannedCheckpoint
from tinker_recovery.errors import UsageError

State = Literal["intended", "deleting", "deleted", "failed", "withdrawn"]
"""How far a deletion has come."""

RETRY_S = 30.0
"""Seconds before the first retry of a failed deletion; doubled for each further one."""

MAX_RETRY_S = 3600.0
"""Upper limit of that delay."""

SETTLE_S = 600.0
"""Seconds for which the service may still carry out a request that got no answer."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """A journal entry: how far the deletion of one checkpoint has come.

    Attributes:
        path: The checkpoint's ``tinker://`` path.
        state: How far it has come.
        reason: Why the checkpoint is deleted, why that failed, or why it was withdrawn.
        at_s: When it was written, in seconds since the epoch: later processes read it.
        size_bytes: The checkpoint's size, where known.
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
        """The reverse of :meth:`to_line`.

        Raises:
            UsageError: That did not write it.
        """
        try:
            entry = cls(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"the journal entry {line[:200]!r} is not a deletion: {error}"
            ) from error
        if entry.state not in get_args(State):
            raise UsageError(
                f"state {entry.state!r} of {entry.path} is none of {', '.join(get_args(State))}"
            )
        return entry

    def retry_due(self, now_s: float) -> bool:
        """Whether a failed deletion may be retried. A clock that was set back delays no retry."""
        return not self.at_s <= now_s < self.retry_at_s

    @property
    def retry_at_s(self) -> float:
        """When a failed deletion is to be retried, in seconds since the epoch."""
        return self.at_s + min(MAX_RETRY_S, RETRY_S * 2.0 ** min(self.failures - 1, 64))


@dataclass(frozen=True, slots=True)
class Write:
    """Write an entry to the journal and, once it is on disk, continue with ``ledger.applied``.

    Attributes:
        entry: What to write.
    """

    entry: Deletion


@dataclass(frozen=True, slots=True)
class Delete:
    """Ask the service to delete a checkpoint, then write its :func:`outcome`. Safe to repeat.

    Attributes:
        entry: Its ``deleting`` entry.
    """

    entry: Deletion

    @property
    def path(self) -> str:
        """The checkpoint's ``tinker://`` path."""
        return self.entry.path


Command = Write | Delete
"""What the collector has to do next about one checkpoint."""


def outcome(command: Delete, status_code: int | None, *, now_s: float) -> Write:
    """The entry to write once the service has answered.

    Args:
        command: What was requested.
        status_code: The HTTP status; None if no answer came. 404 is success: it is gone.
        now_s: Seconds since the epoch.
    """
    entry = command.entry
    if status_code == 404:  # noqa: PLR2004 - HTTP's own number
        return _write(entry, "deleted", "it was gone already", now_s)
    if status_code is not None and 200 <= status_code < 300:  # noqa: PLR2004 - the same
        return _write(entry, "deleted", entry.reason, now_s)
    reason = "no answer came" if status_code is None else f"the service answered HTTP {status_code}"
    return _write(entry, "failed", reason, now_s, failures=entry.failures + 1)


@dataclass(frozen=True, slots=True)
class DeletionLedger:
    """Every deletion the run has intended. Frozen: methods return the ledger after them.

    Attributes:
        entries: The newest entry of each path.
    """

    entries: Mapping[str, Deletion] = field(default_factory=dict)

    @classmethod
    def from_lines(cls, lines: Iterable[str]) -> Self:
        """Read it from the journal, oldest entry first: the last entry of each path counts.

        Raises:
            UsageError: A line is not an entry.
        """
        return cls({entry.path: entry for entry in map(Deletion.from_line, lines)})

    def applied(self, entry: Deletion) -> Self:
        """The ledger after this entry, which must be on disk."""
        return type(self)({**self.entries, entry.path: entry})

    def being_deleted(self, *, now_s: float) -> Collection[str]:
        """Paths that a request of ours may still delete: nothing may rely on them.

        That includes a deletion that was withdrawn, and a checkpoint missing from a listing, for
        :data:`SETTLE_S`: if it is listed after that, it has survived.
        """
        return {
            path
            for path, entry in self.entries.items()
            if entry.sent
            and not (entry.state in {"withdrawn", "deleted"} and now_s >= entry.at_s + SETTLE_S)
        }

    def commands(self, plan: DeletionPlan, *, now_s: float) -> list[Command]:
        """The next command for each path that needs one.

        Args:
            plan: Made just now, from a complete listing read just now and :meth:`being_deleted`.
            now_s: Seconds since the epoch.
        """
        planned = {each.path: each for each in plan.checkpoints}
        commands: list[Command] = []
        for path, entry in sorted(self.entries.items()):
            if entry.state in {"intended", "deleting", "failed"}:
                command = _continued(entry, planned.get(path), now_s)
                if command is not None:
                    commands.append(command)
        for each in plan.deletions:
            known = self.entries.get(each.path)
            if known is None:
                known = Deletion(each.path, "withdrawn", "", now_s, each.size_bytes)
            # A deleted one that is listed again was saved again, or the listing lags: either way
            # the plan, made from that listing, decides.
            if known.state in {"withdrawn", "deleted"}:
                commands.append(_write(known, "intended", each.reason, now_s))
        return commands


def _continued(entry: Deletion, planned: PlannedCheckpoint | None, now_s: float) -> Command | None:
    if planned is None:
        return _write(entry, "deleted", "it is no longer listed", now_s)
    if not planned.delete:
        return _write(entry, "withdrawn", f"now kept: {planned.reason}", now_s, failures=0)
    if entry.state == "deleting":
        return Delete(entry)
    if entry.state == "intended":
        return _write(entry, "deleting", planned.reason, now_s, sent=True)
    if entry.retry_due(now_s):
        return _write(entry, "intended", planned.reason, now_s)
    return None


def _write(entry: Deletion, state: State, reason: str, now_s: float, **changes: Any) -> Write:
    """Write the entry that follows this one."""
    return Write(replace(entry, state=state, reason=reason, at_s=now_s, **changes))
