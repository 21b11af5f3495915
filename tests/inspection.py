"""Where tests look inside: the one place to mend when internals move."""

from __future__ import annotations

from tinker_recovery import Attempt, Run, Supervisor, Watch
from tinker_recovery.journal import Recorder
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.retention.loop import RetentionLoop
from tinker_recovery.run.scope import AttemptScope
from tinker_recovery.run.supervised import SupervisedRun
from tinker_recovery.service import StatusReader
from tinker_recovery.watched.watch import PolledWatch


def scope_of(attempt: Attempt) -> AttemptScope:
    return attempt._scope


def internals_of(run: Run) -> SupervisedRun:
    return run._run


def polled(watch: Watch) -> PolledWatch:
    return watch._polled


def reader_of(supervisor: Supervisor) -> StatusReader:
    return supervisor._inside.collaborators.reader


def recorder_of(supervisor: Supervisor) -> Recorder:
    return supervisor._inside.recorder


def queue_of(supervisor: Supervisor) -> FaultQueue:
    return supervisor._inside.queue


def retention_of(supervisor: Supervisor) -> RetentionLoop:
    return supervisor._inside.retention


def run_id_of(attempt: Attempt) -> str:
    return str(attempt.client.model_id)
