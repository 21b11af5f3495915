"""The lease on a run: one process trains it; a second one waits, or learns which process holds it.

Only clocks that cannot be set decide. On one machine, the lease is free when its holder's process
is dead. Where that cannot be seen (another machine, another container), the holder counts its
heartbeats, and a waiting process takes over after seeing the same count for a whole lease by its
own monotonic clock. Each holder gets a fencing token, one higher than the last; a write with an old
token is rejected, so a holder that was only suspended cannot change anything.
"""

from __future__ import annotations

import sqlite3
from dataclasses import astuple, dataclass

from tinker_recovery.errors import LeaseLost
from tinker_recovery.journal.holder import Holder

LEASE_S = 30.0
"""How long to wait without a heartbeat for a holder whose process cannot be seen."""

HEARTBEAT_S = LEASE_S / 3
"""How often a holder sends one."""


@dataclass(frozen=True, slots=True)
class HeldLease:
    """The lease of a run that another process holds.

    Attributes:
        by: The holder.
        token: Its fencing token.
        beats: Its heartbeats so far.
        unchanged_since: Since when token and beats are unchanged, by the monotonic clock of the
            process that asks.
    """

    by: Holder
    token: int
    beats: int
    unchanged_since: float


def may_take(held: HeldLease, *, now: float, lives: bool | None) -> bool:
    """Whether a run may be taken from its holder: a pure decision.

    ``now`` is by the clock of ``held.unchanged_since``; ``lives`` says whether the holder's process
    is alive, None if that cannot be seen.
    """
    return now - held.unchanged_since >= LEASE_S if lives is None else not lives


def take(
    connection: sqlite3.Connection,
    run: int,
    *,
    holder: str,
    here: Holder,
    seen: HeldLease | None,
    now: float,
    rob: bool = False,
) -> int | HeldLease:
    """Take a run inside the caller's transaction: returns the new token, or the lease of another.

    ``holder`` is the unique id of the new holder, ``here`` its process, ``seen`` the lease that the
    last call returned, and ``now`` seconds of a monotonic clock. ``rob``: take it from whoever
    has it.
    """
    row = connection.execute(
        "SELECT holder, token, beats, host, machine, pid, born, since, expires FROM leases "
        "WHERE run = ?",
        (run,),
    ).fetchone()
    token = 0
    if row is not None:
        by, token, beats, *rest = row
        if by and not rob:
            same = seen is not None and (seen.token, seen.beats) == (token, beats)
            held = HeldLease(
                Holder(*rest), token, beats, seen.unchanged_since if same and seen else now
            )
            if not may_take(held, now=now, lives=held.by.lives()):
                return held
    connection.execute(
        "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
        (run, token + 1, holder, *astuple(here)),
    )
    return token + 1


def is_held(connection: sqlite3.Connection, run: int, token: int) -> bool:
    """Whether this token still holds the run; to be asked in the same transaction as each write."""
    row = connection.execute(
        "SELECT 1 FROM leases WHERE run = ? AND token = ? AND holder <> ''", (run, token)
    ).fetchone()
    return row is not None


def check_deletion(
    connection: sqlite3.Connection, lineage: str, held: tuple[int, int] | None
) -> None:
    """Refuse a deletion by who may not delete anything of a run; in the transaction of its write.

    Args:
        connection: The journal.
        lineage: Whose checkpoint it is.
        held: The run and the token by which this process trains, or has trained it. Its lease may
            be released by now, as long as no other process has taken the run since. None for a
            process that never did: then nobody else may be training it.

    Raises:
        LeaseLost: The run is another process's.
    """
    if held is not None:
        run, token = held
        row = connection.execute("SELECT token FROM leases WHERE run = ?", (run,)).fetchone()
        if row is None or row[0] != token:
            raise LeaseLost(
                f"run {lineage!r} has been taken over by another process: this one deletes nothing "
                "of it any more",
                run=lineage,
            )
        return
    rows = connection.execute(
        "SELECT host, machine, pid, born, since, expires FROM leases "
        "JOIN runs ON runs.id = leases.run WHERE runs.lineage = ? AND holder <> ''",
        (lineage,),
    )
    for holder in (Holder(*row) for row in rows.fetchall()):
        if holder.lives() is not False:
            raise LeaseLost(
                f"run {lineage!r} is trained by {holder}: nothing of it is deleted by others",
                run=lineage,
            )


def release(connection: sqlite3.Connection, run: int, token: int) -> None:
    """Release a run; its token stays in the table, so that the next is higher."""
    connection.execute("UPDATE leases SET holder = '' WHERE run = ? AND token = ?", (run, token))


def held_by(connection: sqlite3.Connection, holder: str) -> dict[int, int]:
    """The token of every run that a holder holds, by run id."""
    held = connection.execute("SELECT run, token FROM leases WHERE holder = ?", (holder,))
    return dict(held.fetchall())


def heartbeat(connection: sqlite3.Connection, holder: str, *, expires: float) -> None:
    """Renew every lease of a holder."""
    connection.execute(
        "UPDATE leases SET beats = beats + 1, expires = ? WHERE holder = ?", (expires, holder)
    )


def give_back(
    connection: sqlite3.Connection, taken: HeldLease | tuple[int, int, object, int]
) -> None:
    """Release what was taken for nobody: a run and its token, if it was not another's."""
    if not isinstance(taken, HeldLease):
        release(connection, *taken[:2])
