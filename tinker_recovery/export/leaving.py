"""What becomes of what waits to be published, when nobody here publishes it any more."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import anyio.to_thread

from tinker_recovery.checkpoints.publishing import read_done
from tinker_recovery.journal import Notebook
from tinker_recovery.journal.publication import Publication
from tinker_recovery.telemetry import EventSink, names

EXPORTS = "exports"
"""The folder beside the journal of what is exported, and not published yet."""


def place_of(exports: Path, path: str) -> Path:
    """The folder of one export among those that wait."""
    return exports / hashlib.sha256(path.encode()).hexdigest()[:16]


def remove(place: Path) -> None:
    """Remove the folder of one export, if it is there. Blocks."""
    shutil.rmtree(place, ignore_errors=True)


async def hand_over(notebook: Notebook, waiting: Iterable[Publication]) -> None:
    """Note that this process is not at them any more, so that any other goes on with them.

    Without it those of this process would wait for its end, as in a notebook.

    Raises:
        JournalError: The journal cannot be used.
    """
    for each in waiting:
        left = replace(each, holder=each.holder.gone())
        await notebook.write_publication(each.path, left.said(), instead_of=each.said())


async def is_passed(notebook: Notebook, publication: Publication) -> bool:
    """Whether one of as many steps, or more, was published of its run; it is let go of then.

    By another process; or by this one or one before it, which could not note it then.

    Raises:
        JournalError: The journal cannot be used.
    """
    done = (await notebook.notes()).published.get(publication.lineage)
    if done is None or read_done(done).step < (publication.step or 0):
        return False
    await notebook.end_publication(publication.path, instead_of=publication.said())
    return True


async def let_go(notebook: Notebook, events: EventSink, lineage: str) -> None:
    """Let go of what was to be published of a run that is trained on without publishing.

    What a process that lives is at stays, and what is another run's: the next program that
    publishes goes on with it.

    Raises:
        JournalError: The journal cannot be used.
    """
    for path, said in (await notebook.notes()).publications.items():
        found = Publication.read(said)
        if found is None or found.lineage != lineage or found.holder.lives() is not False:
            continue
        if not await notebook.end_publication(path, instead_of=said):
            continue  # another process has just taken it over
        if notebook.path is not None:
            place = place_of(notebook.path.with_name(EXPORTS), path)
            await anyio.to_thread.run_sync(remove, place)
        if found.repository is not None:
            events.emit(
                names.EVENT_PUBLISH_FAILED,
                found.run,
                f"{path} is not published, and not tried again: push_to_hub is off, and was "
                f"{found.repository!r} when it was to be",
                {names.CHECKPOINT_PATH: path},
            )
