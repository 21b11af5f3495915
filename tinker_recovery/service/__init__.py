"""Everything that touches Tinker: the SDK adapter, the status reader, listings, downloads.

:class:`Backend` creates and closes clients, :class:`SupervisedClient` passes on a run's requests,
and :class:`StatusReader` reads over an HTTP client that shares nothing with the SDK. Every room
above may call it; it never imports ``journal`` or ``faults``, and makes no decision about a run.
"""

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
