"""A simulated service and processes that race for a run there, in virtual time.

The service is as unkind as the claims allow for: dates are off by any time, searches lag, answers
are lost after their effect. The processes are paused and killed at any moment.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import anyio
from virtual import VirtualClock

from tinker_recovery.clock import Clock
from tinker_recovery.errors import StatusRefused, StatusUnavailable
from tinker_recovery.service.claim_line import Claimant
from tinker_recovery.service.claim_sessions import ClaimSessions
from tinker_recovery.service.claims import BEAT_S, Claim, Claims
from tinker_recovery.service.heartbeats import TaskHeartbeats

_T = TypeVar("_T")

RUN = "the-run"
GONE = 410
PATIENCE_S = 5000.0
"""Virtual seconds after which a process is stuck."""


@dataclass(frozen=True)
class Weather:
    """What service and machines are like.

    Attributes:
        settle_s: What the claims wait for.
        delay_s: The most that a search lags.
        in_order: Whether a search shows a state of the past as a whole, instead of leaving out
            sessions one by one.
        limit_s: Seconds without heartbeats after which a claim ends.
        skew_s: The most that a date is off.
        latency_s: The most that a request takes on each way.
        loss: How often an answer is lost.
        revives: Whether a heartbeat makes a silent session active again.
    """

    settle_s: float = 1.0
    delay_s: float = 1.0
    in_order: bool = False
    limit_s: float = 30.0
    skew_s: float = 60.0
    latency_s: float = 0.5
    loss: float = 0.0
    revives: bool = False


@dataclass(frozen=True)
class Fate:
    """What becomes of one process.

    Attributes:
        starts_s: When it starts.
        pauses: When it stands still, and for how long.
        killed_s: When it is killed; None for never.
    """

    starts_s: float = 0.0
    pauses: tuple[tuple[float, float], ...] = ()
    killed_s: float | None = None


@dataclass
class Session:
    opened_s: float
    dated_s: float
    beat_s: float
    metadata: dict[str, str]
    claim: bool
    finished: tuple[float, str] | None = None
    silences: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Write:
    """A training request that the service has accepted, and since when its process held the run."""

    at_s: float
    entry: str
    held_from_s: float


class Service:
    def __init__(self, weather: Weather, clock: VirtualClock, chance: random.Random) -> None:
        self.weather = weather
        self.clock = clock
        self.chance = chance
        self.sessions: dict[str, Session] = {}
        self.writes: list[Write] = []
        self.is_dead: Callable[[int], bool] = lambda _: False
        self.wronged: list[str] = []
        """Sessions that another has finished although their holder's claim was active."""
        self._numbers = itertools.count()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The reply to a request: its status and body."""
        if path == "create_session":
            return 200, {"session_id": self._open(dict(body["user_metadata"]))}
        if path == "sessions/search":
            return 200, {"sessions": self._shown(body)}
        if path == "session_heartbeat":
            return self._beat(self.sessions[body["session_id"]]), {}
        if path == "train":
            session = self.sessions[body["session_id"]]
            if session.finished is not None:
                return GONE, {}
            self.writes.append(Write(self.clock.now, body["entry"], body["held_from_s"]))
            return 200, {}
        session_id = path.split("/")[1]
        session = self.sessions[session_id]
        if body["reason"]["type"] == "interrupted":
            by = re.search(r"by process (\d+) on", body["detail"])
            if self._is_claimed(session_id, but=by and by.group(1)):
                self.wronged.append(session_id)
        if session.finished is None:
            session.finished = (self.clock.now, body["reason"]["type"])
        return 200, {}

    def _beat(self, session: Session) -> int:
        now = self.clock.now
        if self._state(session, now) is None and self.weather.revives:
            session.silences.append((session.beat_s + self.weather.limit_s, now))
            session.beat_s = now
        if self._state(session, now) != {"type": "active"}:
            return GONE
        session.beat_s = now
        return 200

    def _is_claimed(self, session_id: str, *, but: str | None) -> bool:
        """Whether a session is an active claim of a living process but one, or noted by such."""
        entries = {
            session.metadata["tinker_recovery.entry"]
            for session in self.sessions.values()
            if session.metadata.get("tinker_recovery.session") == session_id
        }
        return any(
            session.claim
            and session.metadata["tinker_recovery.pid"] != but
            and (each == session_id or session.metadata["tinker_recovery.entry"] in entries)
            and self._state(session, self.clock.now) == {"type": "active"}
            and not self.is_dead(int(session.metadata["tinker_recovery.pid"]))
            for each, session in self.sessions.items()
        )

    def _open(self, metadata: dict[str, str]) -> str:
        now = self.clock.now
        # Ids are in no order.
        session_id = f"{self.chance.randrange(1000):03}-{next(self._numbers)}"
        self.sessions[session_id] = Session(
            opened_s=now,
            dated_s=now + self.chance.uniform(-1, 1) * self.weather.skew_s,
            beat_s=now,
            metadata=metadata,
            # The SDK's own thread may beat on while our loop stands still.
            claim="tinker_recovery.claim" in metadata,
        )
        return session_id

    def _state(self, session: Session, at_s: float) -> dict[str, Any] | None:
        if session.finished is not None and session.finished[0] <= at_s:
            return {"type": "client_finished", "reason": {"type": session.finished[1]}}
        silent = session.claim and at_s > session.beat_s + self.weather.limit_s
        if silent or any(begin < at_s < end for begin, end in session.silences):
            return None
        return {"type": "active"}

    def _shown(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        now = self.clock.now
        as_of_s = now - self.chance.random() * self.weather.delay_s
        shown = []
        for session_id, session in self.sessions.items():
            # Else every look leaves out others: as if each were answered by another replica.
            lag_s = 0.0 if self.weather.in_order else self.chance.random() * self.weather.delay_s
            seen = session.opened_s <= (as_of_s if self.weather.in_order else now - lag_s)
            state = self._state(session, max(as_of_s, session.opened_s))
            named = query.get("user_metadata", {}).items() <= session.metadata.items() and (
                query.get("session_id") in (None, session_id)
            )
            if seen and named and ("statuses" not in query or state == {"type": "active"}):
                shown.append(
                    {
                        "session_id": session_id,
                        "created_at": datetime.fromtimestamp(session.dated_s + 1e9, UTC),
                        "owner": "o",
                        "project_id": "p",
                        "checkpoints_count": 0,
                        "user_metadata": session.metadata,
                        "status": state,
                    }
                )
        return shown


class Process:
    """One that wants to train the run, and does for a while.

    Args:
        service: The service.
        number: Which one it is.
        fate: What becomes of it.
    """

    def __init__(self, service: Service, number: int, fate: Fate) -> None:
        self.service = service
        self.clock = service.clock
        self.number = number
        self.fate = fate
        self.done = False
        self.over = False
        self.buried = anyio.Event()
        """Ends what waits in a dead process, at the end of the race."""
        self.entered = 0

    @property
    def is_dead(self) -> bool:
        return self.fate.killed_s is not None and self.clock.now >= self.fate.killed_s

    async def sleep(self, seconds: float) -> None:
        await self.clock.sleep(seconds)
        for begins_s, lasts_s in self.fate.pauses:
            if begins_s <= self.clock.now < begins_s + lasts_s:
                await self.clock.sleep(begins_s + lasts_s - self.clock.now)
        if self.is_dead:
            await self.buried.wait()

    async def _request(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        if self.over:
            return None
        chance, weather = self.service.chance, self.service.weather
        # On its way a request is no longer the process's: a pause does not hold it up.
        await self.clock.sleep(chance.random() * weather.latency_s)
        answer = self.service.answer(path, body)
        await self.sleep(chance.random() * weather.latency_s)
        return None if chance.random() < weather.loss else answer

    async def ask(self, method: str, path: str, parse: Callable[[Any], _T], **request: Any) -> _T:
        del method
        answer = await self._request(path, request["json"])
        if answer is None:
            raise StatusUnavailable(path)
        status, reply = answer
        if status != 200:
            raise StatusRefused(path, status_code=status)
        return parse(reply)

    async def send(self, method: str, path: str, **request: Any) -> int | None:
        del method
        answer = await self._request(path, request["json"])
        return answer and answer[0]

    async def live(self, knows: Callable[[Claimant], bool]) -> None:
        await self.sleep(self.fate.starts_s)
        async with anyio.create_task_group() as group:
            clock = Clock(monotonic=self.clock.monotonic, sleep=self.sleep)
            claims = Claims(
                self,
                Claimant(f"host-{self.number}", self.number, "0", f"machine-{self.number}", "j"),
                is_dead=knows,
                heartbeats=TaskHeartbeats(ClaimSessions(self), group, clock, BEAT_S),
                clock=clock,
                settle_s=self.service.weather.settle_s,
            )
            for _ in range(2):
                claim = await claims.enter(RUN, on_held="wait")
                assert isinstance(claim, Claim)
                self.entered += 1
                await self._train(claim, self.clock.now)
                await claim.release()
        self.done = True

    async def _train(self, claim: Claim, held_from_s: float) -> None:
        for _ in range(2):
            try:
                session = await self.ask(
                    "POST",
                    "create_session",
                    lambda reply: reply["session_id"],
                    json={"user_metadata": {}},
                )
                if not await claim.announce(str(session)):
                    return
            except StatusUnavailable:
                continue
            body = {"session_id": session, "entry": claim.entry, "held_from_s": held_from_s}
            for _ in range(4):
                await self.sleep(self.service.chance.random() * 8.0)
                if await self.send("POST", "train", json=body) == GONE:
                    return
            await self.send(
                "POST", f"sessions/{session}/finish", json={"reason": {"type": "success"}}
            )


async def _race(weather: Weather, fates: list[Fate], chance: random.Random) -> Service:
    clock = VirtualClock()
    service = Service(weather, clock, chance)
    processes = [Process(service, number, fate) for number, fate in enumerate(fates)]

    service.is_dead = lambda number: processes[number].is_dead

    def is_dead(claimant: Claimant) -> bool:
        """Processes 0 and 1 are on one machine."""
        return claimant.pid <= 1 and processes[claimant.pid].is_dead

    tasks = [
        asyncio.create_task(each.live(is_dead if each.number <= 1 else lambda _: False))
        for each in processes
    ]
    try:
        while not all(each.done or each.is_dead for each in processes):
            for task in tasks:
                if task.done():
                    task.result()
            stuck = [each.number for each in processes if not each.done and not each.is_dead]
            assert clock.now < PATIENCE_S, f"stuck: {stuck}"
            await clock.sleep(5.0)
    finally:
        for each, task in zip(processes, tasks, strict=True):
            each.over = True
            each.buried.set()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return service


def race(weather: Weather, fates: list[Fate], seed: int) -> Service:
    """Let the processes race; raises AssertionError if one is stuck."""
    return asyncio.run(_race(weather, fates, random.Random(seed)))


def overlaps(service: Service) -> list[tuple[Write, Write]]:
    """Writes of one holder that the service accepted after the next one had taken over."""
    last: dict[str, Write] = {}
    for write in service.writes:
        last[write.entry] = write
    return [
        (earlier, later)
        for earlier in last.values()
        for later in last.values()
        if earlier.held_from_s < later.held_from_s <= earlier.at_s
    ]
