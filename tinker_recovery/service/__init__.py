"""Everything that touches Tinker."""

from tinker_recovery.service.backend import TinkerBackend
from tinker_recovery.service.base import (
    Backend,
    Connection,
    Endpoint,
    FromBaseModel,
    FromCallable,
    FromCheckpoint,
    Origin,
    SaveRequest,
)
from tinker_recovery.service.client import ClientHooks, SupervisedClient
from tinker_recovery.service.status import RunStatus, StatusReader

__all__ = [
    "Backend",
    "ClientHooks",
    "Connection",
    "Endpoint",
    "FromBaseModel",
    "FromCallable",
    "FromCheckpoint",
    "Origin",
    "RunStatus",
    "SaveRequest",
    "StatusReader",
    "SupervisedClient",
    "TinkerBackend",
]
