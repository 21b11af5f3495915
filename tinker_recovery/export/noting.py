"""Noting in the journal that a checkpoint is being exported, so that retention keeps it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tinker_recovery.export.manifest import CheckpointFacts
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.publication import Publication
from tinker_recovery.shielding import to_the_end


@asynccontextmanager
async def noted(
    checkpoint: CheckpointFacts, journal: Path | None, *, service: str
) -> AsyncGenerator[None]:
    """While inside, the journal says that a checkpoint is being exported by this process.

    One that is to be published anyway stays noted as that. What a killed process has noted keeps
    nothing.

    Args:
        checkpoint: What is exported.
        journal: The journal's file; None where there is none.
        service: Base URL of the service.

    Raises:
        JournalError: The journal cannot be used.
    """
    if journal is None:
        yield
        return
    async with Notebook(Journal(journal, service=service)) as notebook:
        there = (await notebook.notes()).publications.get(checkpoint.path)
        found = None if there is None else Publication.read(there)
        if there is not None and (found is None or found.keeps):
            yield
            return
        publication = Publication(
            path=checkpoint.path,
            run=checkpoint.run,
            lineage=checkpoint.lineage,
            step=checkpoint.step,
            holder=Holder.here(now=time.time(), lease_s=0.0),
        )
        said = publication.said()
        await notebook.write_publication(checkpoint.path, said)
        try:
            yield
        finally:
            # Only this note: the run may have noted meanwhile that it is to be published.
            await to_the_end(notebook.end_publication(checkpoint.path, instead_of=said))
