"""Which workers are there: each holds a claim of its own at the service, as runs do.

The engine's rows say which worker runs a job. Of one whose claim is no longer active, the jobs are
left, and any other worker takes them over. That decides when a job is looked after again, and not
who trains its run: for that the run has its own claim, which whoever takes it over waits for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Self

import anyio

from tinker_recovery.errors import LeaseLost, StatusError
from tinker_recovery.journal.holder import Holder
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.run.claiming import Claiming, is_dead
from tinker_recovery.service import StatusReader, TinkerBackend
from tinker_recovery.service.base import ServiceFactory
from tinker_recovery.service.claim_line import Claimant, rivals
from tinker_recovery.service.claim_sessions import ClaimSessions
from tinker_recovery.service.guard import Guard
from tinker_recovery.shielding import to_the_end
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)


@dataclass(frozen=True, slots=True)
class Executor:
    """A worker, as the engine's rows name it.

    Attributes:
        id: Drawn at random.
        service: Digest of the service's address: only there its claim says anything.
        claimed: Whether it has a claim. Without one, only its own machine can see that it is gone.
        host: Its host name.
        machine: Identifies its machine and PID namespace; empty where that is not known.
        pid: Its process id.
        born: When that process started; opaque.
    """

    id: str
    service: str
    claimed: bool
    host: str
    machine: str
    pid: int
    born: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """From the text in a row; None if another kind of process wrote it."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @property
    def name(self) -> str:
        """What its claim is of."""
        return f"jobs worker {self.id}"

    @property
    def is_dead(self) -> bool:
        """Whether it is known to be dead, as only one on this machine can be."""
        return is_dead(Claimant(self.host, self.pid, self.born, self.machine, ""))


def named(text: str) -> str:
    """A worker for people, from the text in a row."""
    other = Executor.parse(text)
    return text if other is None else f"the worker, process {other.pid} on {other.host},"


class Presence:
    """This worker's own claim, and how the others' are asked for; made by :func:`present`.

    Args:
        executor: This worker.
        sessions: The service.
        guard: Its claim, if the service holds any.
    """

    def __init__(self, executor: Executor, sessions: ClaimSessions, guard: Guard) -> None:
        self.executor = executor
        self._sessions = sessions
        self._guard = guard
        self._said: set[str] = set()

    async def lost(self) -> LeaseLost:
        """Wait until the service has ended the claim: the error to leave with."""
        claim = self._guard.claim
        await (anyio.Event() if claim is None else claim.lost).wait()
        return LeaseLost(
            "the service has ended the claim of this worker, which gave no sign of life for too "
            "long: its jobs are taken over by others; start it again",
            run=self.executor.name,
        )

    async def is_held(self) -> bool:
        """Whether the claim is still there, by the service's word; no answer counts as yes.

        If it is not, :meth:`lost` returns.
        """
        try:
            await self._guard.check()
        except LeaseLost:
            return False
        return True

    async def is_gone(self, text: str) -> bool:
        """Whether the worker that a row names is there no more; no answer counts as no."""
        other = Executor.parse(text)
        if other is None or other.service != self.executor.service:
            return False
        if other.is_dead:
            return True
        if not other.claimed:
            self._say_unseen(other)
            return False
        try:
            found = await self._sessions.active_claims(other.name)
        except StatusError as error:
            logger.debug("asking for the claim of %s: %s", other.name, error)
            return False
        return not rivals(found, "", lambda claim: is_dead(claim.claimant))

    def _say_unseen(self, other: Executor) -> None:
        if other.id not in self._said and other.machine != self.executor.machine:
            self._said.add(other.id)
            logger.warning(
                "process %d on %s runs jobs without a claim, which its service does not hold: that "
                "it is gone can be seen on its own machine alone",
                other.pid,
                other.host,
            )


@asynccontextmanager
async def present(
    service: ServiceFactory, policy: RecoveryPolicy, wall: Callable[[], float]
) -> AsyncGenerator[Presence]:
    """Hold a claim for this worker; it is given free on the way out.

    Raises:
        UsageError: There is no credential for the service.
        ServiceUnusable: The service has not answered for ``policy.max_wait_s``.
    """
    backend = TinkerBackend(service)
    endpoint = await backend.endpoint()
    here = Holder.here(now=0.0, lease_s=0.0)
    digest = hashlib.sha256(endpoint.base_url.encode()).hexdigest()[:12]
    executor = Executor(
        id=secrets.token_hex(8),
        service=digest,
        claimed=True,
        host=here.host,
        machine=here.machine,
        pid=here.pid,
        born=here.born,
    )
    async with StatusReader.by(policy, endpoint, wall) as reader:
        claiming = Claiming("service", reader, None, max_wait_s=policy.max_wait_s)
        try:
            guard = await claiming.enter(executor.name, on_held="refuse")
            if guard.claim is None:
                executor = replace(executor, claimed=False)
            yield Presence(executor, ClaimSessions(reader.http), guard)
        finally:
            await to_the_end(_leave(claiming, backend))


async def _leave(claiming: Claiming, backend: TinkerBackend) -> None:
    await claiming.aclose()
    await backend.aclose()
