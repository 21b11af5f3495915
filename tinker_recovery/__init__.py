"""Supervision and exact, automatic recovery for training loops over the Tinker API.

::

    from tinker_recovery import CheckpointPolicy, RecoveryPolicy, Supervisor

    policy = RecoveryPolicy(checkpoints=CheckpointPolicy(save_every=20))
    async with Supervisor(policy) as supervisor:
        async for attempt in supervisor.attempts(base_model="Qwen/Qwen3-8B", rank=32):
            async with attempt:
                for step in range(attempt.start_step, 1000):
                    forward = attempt.client.forward_backward(batch(step), "cross_entropy")
                    update = attempt.client.optim_step(adam)
                    await forward
                    await update
"""

from tinker_recovery.checkpoint_policy import CheckpointPolicy
from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.clock import Clock
from tinker_recovery.errors import (
    AmbiguousRun,
    CheckpointError,
    ContradictoryCheckpoints,
    CorruptedRun,
    DeadlineExceeded,
    FaultError,
    InvalidMetadata,
    JournalError,
    LeaseLost,
    NonFiniteLoss,
    NoUsableCheckpoint,
    OtherWeights,
    RecoveryExhausted,
    RecoveryLost,
    RecoveryRefused,
    RunFailed,
    RunFinished,
    RunHeld,
    ServiceUnusable,
    StaleAttempt,
    StatusError,
    StatusRefused,
    StatusUnavailable,
    TinkerRecoveryError,
    UsageError,
)
from tinker_recovery.faults import Fault, Kind, Verdict
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.policy_settings import policy_from_settings
from tinker_recovery.recovery.manual import Recovered, recover_from_checkpoint
from tinker_recovery.recovery.recoverable import Recovery
from tinker_recovery.run.attempt import Attempt
from tinker_recovery.run.group import GroupAttempt
from tinker_recovery.run.options import StartOptions
from tinker_recovery.run.view import Run
from tinker_recovery.service import SupervisedClient
from tinker_recovery.service.base import ServiceFactory
from tinker_recovery.supervisor import Supervisor
from tinker_recovery.telemetry import EventsDropped, EventStream, RecoveryEvent
from tinker_recovery.watched.watch import Watch

__version__ = "0.1.0"

__all__ = [
    "AmbiguousRun",
    "Attempt",
    "CheckpointError",
    "CheckpointPolicy",
    "CheckpointRecord",
    "Clock",
    "ContradictoryCheckpoints",
    "CorruptedRun",
    "DeadlineExceeded",
    "EventStream",
    "EventsDropped",
    "Fault",
    "FaultError",
    "GroupAttempt",
    "InvalidMetadata",
    "JournalError",
    "Kind",
    "LeaseLost",
    "NoUsableCheckpoint",
    "NonFiniteLoss",
    "OtherWeights",
    "Recovered",
    "Recovery",
    "RecoveryEvent",
    "RecoveryExhausted",
    "RecoveryLost",
    "RecoveryPolicy",
    "RecoveryRefused",
    "Run",
    "RunFailed",
    "RunFinished",
    "RunHeld",
    "ServiceFactory",
    "ServiceUnusable",
    "StaleAttempt",
    "StartOptions",
    "StatusError",
    "StatusRefused",
    "StatusUnavailable",
    "SupervisedClient",
    "Supervisor",
    "TinkerRecoveryError",
    "UsageError",
    "Verdict",
    "Watch",
    "__version__",
    "policy_from_settings",
    "recover_from_checkpoint",
]
