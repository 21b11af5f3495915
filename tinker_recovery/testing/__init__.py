"""A Tinker service for tests: the real protocol, a small real model, scripted faults.

The unmodified tinker SDK is its client. What moto is for AWS, this is for Tinker::

    async with LocalTinker() as server:
        server.poison(at_step=12)                  # the backend fails at step 12
        service = server.service()                 # a real tinker.ServiceClient
        ...
        assert server.run_state(run_id).steps == 30

Everything that can go wrong is in the table of :mod:`tinker_recovery.testing.actions`; a
:class:`FaultRule` says when, how often and for how long. A whole outage is
:meth:`LocalTinker.outage`; a stored checkpoint is damaged by :meth:`LocalTinker.damage`.
Hypothesis draws faults with :mod:`tinker_recovery.testing.strategies`.

As a pytest fixture, see :mod:`tinker_recovery.testing.fixtures`; in a process of its own that can
be killed, :class:`LocalTinkerProcess`; from a shell, ``tinker-recovery serve``.
"""

try:
    from tinker_recovery.testing.server import LocalTinker, RequestStats, serve
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in {"starlette", "uvicorn", "safetensors"}:
        raise
    raise ModuleNotFoundError(
        f'the local Tinker server needs {missing}: pip install "tinker-recovery[local]"',
        name=error.name,
    ) from error

from tinker_recovery.testing.book import FiredFault
from tinker_recovery.testing.checkpoints import StoredCheckpoint
from tinker_recovery.testing.damage import Damage
from tinker_recovery.testing.faults import FaultRule
from tinker_recovery.testing.options import Options
from tinker_recovery.testing.process import LocalTinkerProcess
from tinker_recovery.testing.runs import RunState

__all__ = [
    "Damage",
    "FaultRule",
    "FiredFault",
    "LocalTinker",
    "LocalTinkerProcess",
    "Options",
    "RequestStats",
    "RunState",
    "StoredCheckpoint",
    "serve",
]
