"""What a service does with the metadata of saves: said once, and kept in the journal instead."""

from __future__ import annotations

import functools
import logging

from tinker_recovery.errors import JournalError
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.service.metadata import Keeps
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

_WORDS = {
    "forgotten": "accepts user_metadata and does not keep it",
    "refused": "refuses saves with user_metadata",
}


async def recall_metadata(collaborators: Collaborators) -> None:
    """Take over what the journal has noted of metadata; what is found out is said, and noted.

    Raises:
        JournalError: The journal cannot be used.
    """
    notes = await collaborators.notebook.notes()
    metadata = collaborators.reader.metadata
    metadata.recall(notes.keeps_metadata, notes.metadata)
    metadata.on_learned = functools.partial(_learned, collaborators)


def _learned(collaborators: Collaborators, keeps: Keeps) -> None:
    if keeps in _WORDS:
        collaborators.events.emit(
            names.EVENT_METADATA_NOT_KEPT,
            "",
            f"this service {_WORDS[keeps]}: step, attempt and run of a checkpoint are read from "
            "its name, loop_state, epochs and metrics from this journal alone. Keep the journal's "
            "file, and do not rely on another machine to resume a loop that sets loop_state; the "
            "loop's own saves are not recovered from",
            {names.REASON: keeps},
        )
    collaborators.spawn(functools.partial(_note, collaborators, keeps))


async def _note(collaborators: Collaborators, keeps: Keeps) -> None:
    try:
        await collaborators.notebook.note_keeps_metadata(keeps)
    except JournalError as error:
        logger.error("what the service does with metadata is not noted: %s", error)  # noqa: TRY400 - the message says it all
    await write_metadata(collaborators)


async def write_metadata(collaborators: Collaborators) -> None:
    """Have the journal keep the metadata that the service does not; never raises."""
    for path, said in collaborators.reader.metadata.to_write().items():
        try:
            await collaborators.notebook.note_metadata(path, said)
        except JournalError as error:
            logger.error("the metadata of %s is not noted: %s", path, error)  # noqa: TRY400 - as above
