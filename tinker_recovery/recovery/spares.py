"""Spare clients: each loaded from its run's newest checkpoint, before a fault asks for that.

In the manner of a hot spare. A fault then costs neither a session nor a load, only the choice of
the checkpoint and the canary's answer, which says that the spare still has the weights it was
loaded with. It is used for that very checkpoint, and for none that is older or newer.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.service import Connection, FromCheckpoint, Patience, TinkerBackend
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

Spawn = Callable[[Callable[[], Coroutine[object, object, None]]], object]
"""Starts something in the background, within the Supervisor's life."""


@dataclass(slots=True)
class _Spare:
    """The spare of one run.

    Attributes:
        wanted: Path of the checkpoint it is to be loaded from; None if it is to be closed.
        connection: The client, while nothing is being done to it.
        loaded: Path of the checkpoint it was loaded from.
        busy: Whether it is being loaded, or closed.
    """

    wanted: str | None = None
    connection: Connection | None = None
    loaded: str | None = None
    busy: bool = False


class Spares:
    """The spares of all runs of a Supervisor, with ``standby="loaded"``; none otherwise.

    Every method belongs to the event loop. A spare that cannot be made is made at the next
    checkpoint; nothing of it ever fails or delays a run.

    Args:
        backend: What they are made with.
        policy: The user's policy.
        spawn: Runs something in the background.
    """

    def __init__(self, backend: TinkerBackend, policy: RecoveryPolicy, spawn: Spawn) -> None:
        self._backend = backend
        self._policy = policy
        self._spawn = spawn
        self._spares: dict[str, _Spare] = {}
        self._distrusted: list[_Spare] = []
        self._outages: Counter[str] = Counter()
        self._kept = policy.enabled and policy.standby == "loaded"

    def load(self, run: str, path: str) -> None:
        """Have the spare of this run loaded from this checkpoint, in the background."""
        if not self._kept:
            return
        spare = self._spares.setdefault(run, _Spare())
        spare.wanted = path
        self._begin(spare)

    def take(self, run: str, path: str) -> Connection | None:
        """The spare of this run, if it is loaded from this checkpoint; from now on the caller's."""
        spare = self._spares.get(run)
        if spare is None or spare.loaded != path:
            return None
        connection, spare.connection = spare.connection, None
        spare.loaded = spare.wanted = None
        return connection

    def distrust(self, run: str) -> None:
        """Use the spare of this run for nothing any more; :meth:`drop` closes it.

        Nor what is being loaded for it just now, even if the same checkpoint is wanted again.
        """
        self._outages[run] += 1
        if (spare := self._spares.pop(run, None)) is not None:
            spare.wanted = None
            self._distrusted.append(spare)

    def outages(self, run: str) -> int:
        """How often :meth:`distrust` was called: what was taken before may not be used after."""
        return self._outages[run]

    def drop(self, run: str) -> None:
        """Close the spare of this run, and any that is distrusted, in the background."""
        if self._kept:
            self.distrust(run)
            while self._distrusted:
                self._begin(self._distrusted.pop())

    async def aclose(self) -> None:
        """Close them all; never raises an Exception. What is being loaded closes itself."""
        self._kept = False
        for run in list(self._spares):
            self.distrust(run)
        while self._distrusted:
            spare = self._distrusted.pop()
            if not spare.busy:
                await self._work(spare)

    def _begin(self, spare: _Spare) -> None:
        if not spare.busy:
            spare.busy = True
            self._spawn(functools.partial(self._work, spare))

    async def _work(self, spare: _Spare) -> None:
        """Load it from what is wanted, again until nothing newer is; or close it."""
        try:
            while (path := spare.wanted) is not None and spare.loaded != path:
                try:
                    await self._load(spare, path)
                except Exception as error:  # noqa: BLE001 - whatever a service answers, the run trains on, and recovers without a spare
                    logger.info("no spare client is loaded from %s: %r", path, error)
                    if spare.wanted == path:
                        spare.wanted = None
        finally:
            spare.busy = False
            if spare.wanted is None:
                connection, spare.connection, spare.loaded = spare.connection, None, None
                await self._close(connection)

    async def _load(self, spare: _Spare, path: str) -> None:
        # In a client of its own each: the SDK's call that loads into an existing one is deprecated.
        origin = FromCheckpoint(path, optimizer=self._policy.restore_optimizer)
        made = await self._backend.connect(origin, patience=Patience(self._policy.create_timeout_s))
        old, spare.connection, spare.loaded = spare.connection, made, path
        await self._close(old)

    async def _close(self, connection: Connection | None) -> None:
        if connection is not None:
            await self._backend.close(
                connection,
                "success",
                "a spare that is not needed any more",
                deadline_s=self._policy.close_timeout_s,
            )
