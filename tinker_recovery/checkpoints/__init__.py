"""Checkpoints: what one says of itself, when to save, which to trust, which to take and to keep.

Pure decisions over plain records; nothing here talks to the service. In the order they are read:

- ``metadata``, ``record``: what travels with a checkpoint, and what is read back from a listing
- ``schedule``, ``evidence``, ``interval``, ``ledger``: when a save is due, and whether it may start
- ``lineage``, ``selection``: which to go back to
- ``canary``, ``safetensors_header``, ``files``, ``validation``: whether to trust it
- ``retention``, ``deletion_plan``, ``deletion``, ``pacing``, ``renewal``: what to keep, and how to
  delete the rest
- ``policies``: all of that from one CheckpointPolicy
"""

from tinker_recovery.checkpoints.canary import Canary, Comparison, compare
from tinker_recovery.checkpoints.deletion import (
    Command,
    Delete,
    Deletion,
    DeletionLedger,
    Write,
    outcome,
)
from tinker_recovery.checkpoints.deletion_plan import (
    DeletionPlan,
    PlannedCheckpoint,
    Situation,
    plan_deletions,
)
from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.checkpoints.files import FileFacts, inspect_file
from tinker_recovery.checkpoints.interval import AutoInterval, young_daly_s
from tinker_recovery.checkpoints.ledger import InFlight, SaveLedger
from tinker_recovery.checkpoints.lineage import (
    Branch,
    Position,
    Segment,
    eligible,
    on_branch,
    segments_of,
)
from tinker_recovery.checkpoints.metadata import JSON_LIMIT
from tinker_recovery.checkpoints.pacing import TokenBucket
from tinker_recovery.checkpoints.policies import retention_of, schedule_of
from tinker_recovery.checkpoints.record import (
    CheckpointRecord,
    Listed,
    SavedBy,
    checkpoint_metadata,
    run_id_of,
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
    KeepPinned,
    Retention,
)
from tinker_recovery.checkpoints.safetensors_header import DamagedFile
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
    Best,
    Latest,
    Selection,
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
    "JSON_LIMIT",
    "AnyOf",
    "AtEnd",
    "AtPath",
    "AtStep",
    "AtSteps",
    "AutoInterval",
    "Best",
    "Branch",
    "Canary",
    "Candidate",
    "CheckpointRecord",
    "Command",
    "Comparison",
    "DamagedFile",
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
    "InFlight",
    "KeepAll",
    "KeepAny",
    "KeepBest",
    "KeepEvery",
    "KeepIf",
    "KeepLast",
    "KeepPinned",
    "Latest",
    "Listed",
    "Moment",
    "OnImprovement",
    "PlannedCheckpoint",
    "Position",
    "Renewal",
    "Retention",
    "SaveLedger",
    "SavedBy",
    "Schedule",
    "Segment",
    "Selection",
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
    "compare",
    "eligible",
    "first_objection",
    "inspect_file",
    "on_branch",
    "outcome",
    "plan_deletions",
    "renewals",
    "retention_of",
    "run_id_of",
    "schedule_of",
    "segments_of",
    "select",
    "wanted",
    "with_canaries",
    "young_daly_s",
]
