"""Decisions about checkpoints: pure functions over plain records.

Nothing here talks to the service, reads a clock or keeps state; only ``files`` does I/O, on a file
that was downloaded. The rooms above ask the service and the journal, decide here, and act. The room
imports ``checkpoint_policy`` and ``errors`` alone. What other rooms call is exported, and what a
user's policy may be given; the rest is imported from its module.

- ``metadata``, ``record``: what is stored with a checkpoint, and reading it back from a listing
- ``schedule``, ``evidence``, ``interval``, ``ledger``: when to save, and whether a save may start
- ``lineage``, ``selection``: which checkpoint to recover from
- ``contradiction``: whether checkpoints that name one run can all be of it
- ``canary``, ``prompt``, ``safetensors_header``, ``files``, ``validation``: whether a checkpoint
  is valid
- ``retention``, ``deletion_plan``, ``deletion``, ``pacing``, ``renewal``: what to keep, what to
  renew, and how to delete the rest
- ``policies``: the schedule and the retention that a CheckpointPolicy asks for
"""

from tinker_recovery.checkpoints.canary import Canary
from tinker_recovery.checkpoints.deletion import (
    Command,
    Delete,
    Deletion,
    DeletionLedger,
    Write,
    outcome,
)
from tinker_recovery.checkpoints.deletion_plan import DeletionPlan, Situation, plan_deletions
from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.checkpoints.files import FileFacts
from tinker_recovery.checkpoints.interval import AutoInterval
from tinker_recovery.checkpoints.ledger import SaveLedger
from tinker_recovery.checkpoints.lineage import Branch, Segment, eligible, on_branch, segments_of
from tinker_recovery.checkpoints.pacing import TokenBucket
from tinker_recovery.checkpoints.policies import counts_epochs, retention_of, schedule_of
from tinker_recovery.checkpoints.record import (
    CheckpointRecord,
    Listed,
    SavedBy,
    checkpoint_metadata,
    run_id_of,
    run_id_unchecked,
    with_canaries,
)
from tinker_recovery.checkpoints.renewal import Renewal, renewals
from tinker_recovery.checkpoints.retention import (
    Candidate,
    KeepAll,
    KeepAny,
    KeepBest,
    KeepEvery,
    KeepIf,
    KeepLast,
    Retention,
)
from tinker_recovery.checkpoints.schedule import (
    AnyOf,
    AtEnd,
    AtSteps,
    Decision,
    EveryEpochs,
    EverySeconds,
    EverySteps,
    Moment,
    OnImprovement,
    Schedule,
)
from tinker_recovery.checkpoints.selection import (
    AtPath,
    AtStep,
    Latest,
    Wanted,
    select,
    wanted,
)
from tinker_recovery.checkpoints.validation import (
    Finding,
    WeightsFacts,
    check_bytes,
    check_canary,
    check_listing,
    check_metadata,
    check_weights,
    first_objection,
)

__all__ = [
    "AnyOf",
    "AtEnd",
    "AtPath",
    "AtStep",
    "AtSteps",
    "AutoInterval",
    "Branch",
    "Canary",
    "Candidate",
    "CheckpointRecord",
    "Command",
    "Decision",
    "Delete",
    "Deletion",
    "DeletionLedger",
    "DeletionPlan",
    "EveryEpochs",
    "EverySeconds",
    "EverySteps",
    "Evidence",
    "FileFacts",
    "Finding",
    "KeepAll",
    "KeepAny",
    "KeepBest",
    "KeepEvery",
    "KeepIf",
    "KeepLast",
    "Latest",
    "Listed",
    "Moment",
    "OnImprovement",
    "Renewal",
    "Retention",
    "SaveLedger",
    "SavedBy",
    "Schedule",
    "Segment",
    "Situation",
    "TokenBucket",
    "Wanted",
    "WeightsFacts",
    "Write",
    "check_bytes",
    "check_canary",
    "check_listing",
    "check_metadata",
    "check_weights",
    "checkpoint_metadata",
    "counts_epochs",
    "eligible",
    "first_objection",
    "on_branch",
    "outcome",
    "plan_deletions",
    "renewals",
    "retention_of",
    "run_id_of",
    "run_id_unchecked",
    "schedule_of",
    "segments_of",
    "select",
    "wanted",
    "with_canaries",
]
