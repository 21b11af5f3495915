"""Everything that touches Tinker: the SDK adapter, the status reader, listings, downloads, claims.

:class:`TinkerBackend` creates and closes clients, :class:`SupervisedClient` passes on a run's
requests, and :class:`StatusReader` reads over an HTTP client that shares nothing with the SDK.
Every room above may call it; it never imports ``journal`` or ``faults``, and decides nothing about
a run.
"""

from tinker_recovery.service.at_work import Patience
from tinker_recovery.service.backend import TinkerBackend
from tinker_recovery.service.base import (
    Connection,
    Endpoint,
    FromBaseModel,
    FromCallable,
    FromCheckpoint,
    Origin,
    SaveRequest,
)
from tinker_recovery.service.client import SupervisedClient
from tinker_recovery.service.status import Asked, RunStatus, StatusReader

__all__ = [
    "Asked",
    "Connection",
    "Endpoint",
    "FromBaseModel",
    "FromCallable",
    "FromCheckpoint",
    "Origin",
    "Patience",
    "RunStatus",
    "SaveRequest",
    "StatusReader",
    "SupervisedClient",
    "TinkerBackend",
]
