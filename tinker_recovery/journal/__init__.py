"""What must survive this process: kept in a small database of the user's own."""

from tinker_recovery.journal.journal import (
    STATE_FOLDER,
    Journal,
    Notes,
    StateFolder,
    default_path,
    journal_path,
)
from tinker_recovery.journal.notebook import Notebook

__all__ = [
    "STATE_FOLDER",
    "Journal",
    "Notebook",
    "Notes",
    "StateFolder",
    "default_path",
    "journal_path",
]
