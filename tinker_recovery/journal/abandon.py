"""Abandoning a run: its name is free again; its checkpoints are kept."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from tinker_recovery.journal.database import Database
from tinker_recovery.journal.reading import RunView, read_run, read_runs
from tinker_recovery.journal.recalled import forget_recalled


def abandon(
    path: Path, name: str, *, service: str | None = None, even_if_held: bool = False
) -> RunView | None:
    """Abandon a run; returns its last state, or None if there is no such run.

    Of several with that name, at several services, it is the newest that is not abandoned yet.

    The next run of that name starts from scratch. A process that still trains the old one loses
    its lease: its attempt ends with :class:`LeaseLost`; that needs ``even_if_held``.

    Raises:
        RunHeld: A live process holds the run, or one whose state cannot be seen from here.
        JournalError: The journal does not exist, or cannot be written.
    """
    left = [
        each
        for each in read_runs(path)
        if each.name == name and service in (None, each.service) and each.state != "abandoned"
    ]
    if not left:
        return None
    newest = max(left, key=lambda each: each.id)
    run = read_run(path, name, service=newest.service)
    if run is None or run.state == "abandoned":
        return None  # another process has abandoned it meanwhile
    if run.holder is not None and run.live and not even_if_held:
        raise run.holder.held(
            name,
            f"run {name!r} is being trained by {run.holder}: end that process first, or use "
            "--force, which makes it stop when it notices that it lost the run",
        )
    with closing(Database(path)) as database, database.transaction() as connection:
        connection.execute("UPDATE runs SET state = 'abandoned' WHERE id = ?", (run.id,))
        # A new token: later writes of the holder are rejected.
        connection.execute(
            "UPDATE leases SET token = token + 1, holder = '' WHERE run = ?", (run.id,)
        )
    forget_recalled(path, run.lineage)
    return run
