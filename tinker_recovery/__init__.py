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

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from tinker_recovery.supervision.errors import PortableError

if TYPE_CHECKING:
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
    from tinker_recovery.outlets.notify import Notify
    from tinker_recovery.outlets.trackers import WhenSaved
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
    "Notify",
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
    "WhenSaved",
    "__version__",
    "policy_from_settings",
    "recover_from_checkpoint",
]

_HOMES = {
    "checkpoint_policy": ("CheckpointPolicy",),
    "checkpoints": ("CheckpointRecord",),
    "clock": ("Clock",),
    "errors": (
        "AmbiguousRun",
        "CheckpointError",
        "ContradictoryCheckpoints",
        "CorruptedRun",
        "DeadlineExceeded",
        "FaultError",
        "InvalidMetadata",
        "JournalError",
        "LeaseLost",
        "NonFiniteLoss",
        "NoUsableCheckpoint",
        "OtherWeights",
        "RecoveryExhausted",
        "RecoveryLost",
        "RecoveryRefused",
        "RunFailed",
        "RunFinished",
        "RunHeld",
        "ServiceUnusable",
        "StaleAttempt",
        "StatusError",
        "StatusRefused",
        "StatusUnavailable",
        "TinkerRecoveryError",
        "UsageError",
    ),
    "faults": ("Fault", "Kind", "Verdict"),
    "outlets.notify": ("Notify",),
    "outlets.trackers": ("WhenSaved",),
    "policy": ("RecoveryPolicy",),
    "policy_settings": ("policy_from_settings",),
    "recovery.manual": ("Recovered", "recover_from_checkpoint"),
    "recovery.recoverable": ("Recovery",),
    "run.attempt": ("Attempt",),
    "run.group": ("GroupAttempt",),
    "run.options": ("StartOptions",),
    "run.view": ("Run",),
    "service": ("SupervisedClient",),
    "service.base": ("ServiceFactory",),
    "supervisor": ("Supervisor",),
    "telemetry": ("EventsDropped", "EventStream", "RecoveryEvent"),
    "watched.watch": ("Watch",),
}
"""In which module each public name is: it is imported when one of them is asked for."""


def _redact(text: str) -> str:
    from tinker_recovery.telemetry.redaction import redact  # noqa: PLC0415 - with the first message

    return redact(text)


def _load_filters(_: logging.LogRecord) -> bool:
    """Load the redactor with the first record; its filters, added behind this one, see it too."""
    import tinker_recovery.telemetry.redaction  # noqa: F401, PLC0415 - with the first record

    return True


# No secret is shown, whatever little of the package is imported. The redactor takes these places.
PortableError.redact = staticmethod(_redact)
for _logger in ("", ".supervision", ".testing._service_state"):
    logging.getLogger(f"{__name__}{_logger}").addFilter(_load_filters)

if not TYPE_CHECKING:  # with it, every name would be taken for one that there is

    def __getattr__(name: str) -> Any:
        for module, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(_import(module), name)
                return value
        if not name.startswith("_"):
            try:
                return _import(name)
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def _import(module: str) -> Any:
        return importlib.import_module(f"{__name__}.{module}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
