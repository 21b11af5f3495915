"""What must survive this process: kept in a small database of the user's own."""

from tinker_recovery.journal.journal import (
    STATE_FOLDER,
    Journal,
    Notes,
    StateFolder,
    default_path,
    journal_path,
)
from tinker_recovery.journal.lease import HeldLease
from tinker_recovery.journal.notebook import Notebook
from tinker_recovery.journal.recorder import Recorder, RunRecord
from tinker_recovery.journal.records import Found, FoundAttempt, RunRequest

__all__ = [
    "STATE_FOLDER",
    "Found",
    "FoundAttempt",
    "HeldLease",
    "Journal",
    "Notebook",
    "Notes",
    "Recorder",
    "RunRecord",
    "RunRequest",
    "StateFolder",
    "default_path",
    "journal_path",
]
