"""The lease on a run: one process trains it, and whoever comes second waits, or is told who does.

No clock that can be set decides anything. On one machine it is whether the holder's process lives.
Where that cannot be told (another machine, another container) the holder counts its signs of life,
and whoever waits takes over once it has seen the same count for a whole lease, by a clock of its
own that only runs forward. Each holder has a token, one higher than the one before; every write of
a holder is refused once the token is another's, so one that was only asleep changes nothing.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from tinker_recovery.journal.holder import Holder

LEASE_S = 30.0
"""How long a holder that cannot be seen is waited for without a sign of life."""

BEAT_S = LEASE_S / 3
"""How often a holder gives one."""


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A run is held by another.

    Attributes:
        by: Who.
        token: Its token.
        beats: Its signs of life so far.
        unchanged_since: Since when these two have been as they are, by the clock of whoever asks;
            it only runs forward.
    """

    by: Holder
    token: int
    beats: int
    unchanged_since: float


def may_take(held: HeldLease, *, now: float, lives: bool | None, lease_s: float = LEASE_S) -> bool:
    """Whether a run may be taken from its holder: a pure decision.

    Args:
        held: What is known of the holder.
        now: By the clock of ``held.unchanged_since``.
        lives: Whether the holder's process lives; None if that cannot be told.
        lease_s: How long it may be silent where it cannot be told.
    """
    if lives is None:
        return now - held.unchanged_since >= lease_s
    return not lives


def take(
    connection: sqlite3.Connection,
    run: int,
    *,
    holder: str,
    here: Holder,
    seen: HeldLease | None,
    now: float,
) -> int | HeldLease:
    """Take a run, inside the caller's transaction: the new token, or who holds it.

    Args:
        connection: Of the journal.
        run: The journal's number of the run.
        holder: Id of whoever takes it, unlike every other's.
        here: The same, for people and for those who look whether it lives.
        seen: What was seen of the holder when asked before.
        now: Seconds of a clock that only runs forward.
    """
    row = connection.execute(
        "SELECT holder, token, beats, host, machine, pid, born, since, expires FROM leases "
        "WHERE run = ?",
        (run,),
    ).fetchone()
    token = 0
    if row is not None:
        by, token, beats, *rest = row
        if by:
            same = seen is not None and (seen.token, seen.beats) == (token, beats)
            held = HeldLease(
                Holder(*rest), token, beats, seen.unchanged_since if same and seen else now
            )
            if not may_take(held, now=now, lives=held.by.lives()):
                return held
    connection.execute(
        "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
        (
            run,
            token + 1,
            holder,
            here.host,
            here.machine,
            here.pid,
            here.born,
            here.since,
            here.expires,
        ),
    )
    return token + 1


def is_held(connection: sqlite3.Connection, run: int, token: int) -> bool:
    """Whether this token is still the run's: asked in the same transaction as each write."""
    row = connection.execute(
        "SELECT 1 FROM leases WHERE run = ? AND token = ? AND holder <> ''", (run, token)
    ).fetchone()
    return row is not None


def release(connection: sqlite3.Connection, run: int, token: int) -> None:
    """Give a run back; its token stays, so that the next is higher."""
    connection.execute("UPDATE leases SET holder = '' WHERE run = ? AND token = ?", (run, token))


def held_by(connection: sqlite3.Connection, holder: str) -> dict[int, int]:
    """The token of every run that a holder holds."""
    held = connection.execute("SELECT run, token FROM leases WHERE holder = ?", (holder,))
    return dict(held.fetchall())


def beat(connection: sqlite3.Connection, holder: str, *, expires: float) -> None:
    """A sign of life for all that is held."""
    connection.execute(
        "UPDATE leases SET beats = beats + 1, expires = ? WHERE holder = ?", (expires, holder)
    )
