"""Forgetting a run: its name is free again, and nothing it saved is touched."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from tinker_recovery.errors import RunHeld
from tinker_recovery.journal.database import Database
from tinker_recovery.journal.reading import RunView, read_run


def abandon(
    path: Path, name: str, *, service: str | None = None, even_if_held: bool = False
) -> RunView | None:
    """Forget the run of this name; returns it as it was, or None if there is none to forget.

    The next run of the name begins anew. Whoever still trains it loses its lease: its attempt ends
    with :class:`LeaseLost`.

    Args:
        path: The journal.
        name: The run's name.
        service: Base URL of its service; None for any.
        even_if_held: Do so though a process holds it.

    Raises:
        RunHeld: A process holds it that lives, as far as can be told from here.
        JournalError: The journal is not there, or cannot be written.
    """
    run = read_run(path, name, service=service)
    if run is None or run.state == "abandoned":
        return None
    if run.holder is not None and run.live and not even_if_held:
        raise RunHeld(
            f"run {name!r} is being trained by {run.holder}: end that process first, or insist "
            "(--force), and it ends by itself when it notices",
            run=name,
            pid=run.holder.pid,
            host=run.holder.host,
            since=run.holder.since,
            expires=run.holder.expires,
        )
    with closing(Database(path)) as database, database.transaction() as connection:
        connection.execute("UPDATE runs SET state = 'abandoned' WHERE id = ?", (run.id,))
        # The next token: whatever its holder still writes is refused.
        connection.execute(
            "UPDATE leases SET token = token + 1, holder = '' WHERE run = ?", (run.id,)
        )
    return run
