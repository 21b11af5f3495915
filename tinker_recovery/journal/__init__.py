"""The journal: what must survive this process, in one SQLite file in the user's state folder.

Here live the notes on checkpoints (:class:`Journal`, :class:`Notebook`), the records of runs with
the lease that lets one process train each (:class:`Recorder`; ``lease`` has its length), and the
readers for other processes (``reading``, ``summary``). Every room above may call it; it never
imports ``service``.
"""

from tinker_recovery.journal.journal import (
    STATE_FOLDER,
    Journal,
    Notes,
    StateFolder,
    default_path,
    journal_path,
    option_for,
)
from tinker_recovery.journal.lease import HeldLease
from tinker_recovery.journal.notebook import Notebook
from tinker_recovery.journal.recorder import Recorder, RunRecord
from tinker_recovery.journal.run_sql import RunRequest, StoredAttempt, StoredRun

__all__ = [
    "STATE_FOLDER",
    "HeldLease",
    "Journal",
    "Notebook",
    "Notes",
    "Recorder",
    "RunRecord",
    "RunRequest",
    "StateFolder",
    "StoredAttempt",
    "StoredRun",
    "default_path",
    "journal_path",
    "option_for",
]
