"""A run made up for tests of restoring it, with what is listed of it, and a service."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import httpx
import tinker
from made import LINEAGE, NOW, listed_json, path, record, segment
from pydantic import SecretStr
from tinker.types import RequestErrorCategory

from tinker_recovery import RecoveryEvent, RecoveryPolicy
from tinker_recovery.checkpoints import WeightsFacts, checkpoint_metadata
from tinker_recovery.checkpoints.prompt import prompt_of
from tinker_recovery.clock import Clock
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.restore import Restore, Restored
from tinker_recovery.recovery.selection import RestorableRun
from tinker_recovery.recovery.spares import Spares
from tinker_recovery.service import FromBaseModel, FromCheckpoint, Patience, StatusReader
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.guard import Guard
from tinker_recovery.telemetry import EventSink

ORIGIN = FromBaseModel("m", {})
REFUSED = tinker.RequestFailedError("no such file", "1", RequestErrorCategory.User)
FAILED = tinker.RequestFailedError("disk trouble", "1", RequestErrorCategory.Server)
NAN = (math.nan,)


def answer_at(step: int) -> tuple[float, ...]:
    """What the canary answers on the weights of a step."""
    return -1.0, -float(step)


class Client:
    """A client made from somewhere, which answers the canary."""

    def __init__(self, world: World, number: int, source: str | None) -> None:
        self.run_id, self.source, self.service = f"new-{number}", source, None
        self.training = self
        self._world = world
        self.asked = 0

    def forward(self, batch: Any, loss: str) -> Any:
        assert loss == "cross_entropy"
        assert batch == self._world.known.prompt.batch
        self._world.on_asked(self)
        answers = self._world.answers[self.source]
        said = answers[min(self.asked, len(answers) - 1)]
        self.asked += 1
        future: Future[Any] = Future()
        output = {"logprobs": SimpleNamespace(data=list(said))}
        if not self._world.answers_late:
            future.set_result(SimpleNamespace(loss_fn_outputs=[output]))
        return SimpleNamespace(future=lambda: future)


class World:
    """A run, what is listed of it, and a service that makes clients.

    Args:
        steps: What is listed of it.
        canary: Whether it has one, which was asked at each save.
        origin: How to start it over.
        stored: Whether this process knows of the saves, and their paths are the schedule's.
    """

    def __init__(
        self, *steps: int, canary: bool = True, origin: Any = ORIGIN, stored: bool = False
    ) -> None:
        self.stored = stored
        self.policy = RecoveryPolicy(canary=prompt_of([1, 2, 3]) if canary else None)
        self.known = CheckpointState.by(self.policy, "r", LINEAGE)
        self.listed: list[dict[str, Any]] = []
        self.answers: dict[str | None, list[tuple[float, ...]]] = {None: [answer_at(0)]}
        self.errors: dict[str | None, list[BaseException]] = {}
        """What making a client from there raises, the first times."""
        self.on_made: Callable[[Client], object] = lambda _: None
        self.on_asked: Callable[[Client], object] = lambda _: None
        self.on_close: Callable[[Client], Awaitable[object]] | None = None
        self.on_listed: Callable[[], object] = lambda: None
        self.answers_late = False
        """Whether no canary is answered."""
        self.opened: list[str] = []
        """The sessions opened ahead."""
        self.given_back: list[object] = []
        self.pendings: list[object] = []
        """The session, if one was opened, that each client was made in."""
        self.patiences: list[Patience] = []
        self.spares: Spares | None = None
        self.now_s = 0.0
        self.tasks: list[asyncio.Task[Any]] = []
        self.made: list[Client] = []
        self.closed: list[Client] = []
        self.events: list[RecoveryEvent] = []
        self.announced: list[str] = []
        self.guard: Guard | None = Guard()
        self.run: Any = SimpleNamespace(
            name="r",
            segments=[segment("a")],
            weights=WeightsFacts(),
            checkpoints=self.known,
            root=None,
            origin=origin,
            start_step=0,
        )
        self.known.began = None, "begin", 0
        if canary:
            self.known.canaries.record("begin", 0, answer_at(0))
        for step in steps:
            self.save(step)

    def where(self, step: int) -> str:
        """The path of a save."""
        return f"tinker://a/weights/step-{step}" if self.stored else path("a", step)

    def save(self, step: int, *, by: Any = "schedule") -> None:
        """It is listed, and what the canary answered on it known."""
        made = record(step).model_copy(update={"path": self.where(step)})
        metadata = checkpoint_metadata(
            step=step, lineage=LINEAGE, attempt="a", parent=None, saved_by=by
        )
        self.listed.append(listed_json(made, metadata))
        self.answers[made.path] = [answer_at(step)]
        if self.stored:
            self.known.stored[made.path] = "a", step
        if self.policy.canary is not None:
            self.known.canaries.record("a", step, answer_at(step))

    # The backend

    def open_ahead(self) -> str:
        self.opened.append(f"session {len(self.opened)}")
        return self.opened[-1]

    async def discard(self, session: object) -> None:
        self.given_back.append(session)

    async def connect(
        self, origin: Any, *, patience: Patience, pending: object, announce: object
    ) -> Client:
        assert self.guard is None or announce == self.guard.announce
        assert pending is None or pending in self.opened
        assert patience.limit_s > 0
        self.pendings.append(pending)
        self.patiences.append(patience)
        source = origin.path if isinstance(origin, FromCheckpoint) else None
        assert source is not None or origin is ORIGIN
        if self.errors.get(source):
            raise self.errors[source].pop(0)
        client = Client(self, len(self.made), source)
        self.made.append(client)
        self.on_made(client)
        return client

    async def close(self, client: Client, status: str, reason: str, *, deadline_s: float) -> None:
        assert status == "interrupted"
        assert reason
        assert deadline_s == self.policy.close_timeout_s
        self.closed.append(client)
        if self.on_close is not None:
            await self.on_close(client)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/checkpoints"):
            return httpx.Response(404, json={})
        self.on_listed()
        return httpx.Response(200, json={"checkpoints": self.listed})

    async def restore(self, *, bad: Mapping[str, str] | None = None, **more: Any) -> Restored:
        """One try; ``bad`` is what another process has noted in the journal."""
        async with self._restoring(bad or {}, **more) as restoring:
            return await restoring.restore()

    async def progress(self) -> int | None:
        """How far it has come by what is stored."""
        async with self._restoring({}) as restoring:
            return await restoring.progress()

    @asynccontextmanager
    async def _restoring(self, bad: Mapping[str, str], **more: Any) -> AsyncIterator[Restore]:
        endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))
        transport = httpx.MockTransport(self._answer)
        later = NOW + timedelta(hours=1)
        async with (
            StatusReader(endpoint, transport=transport, wall=later.timestamp) as reader,
            Notebook(Journal(None, service=endpoint.base_url)) as notebook,
        ):
            for where, why in bad.items():
                await notebook.mark_bad(where, why)
            collaborators = SimpleNamespace(
                policy=self.policy,
                backend=self,
                reader=reader,
                notebook=notebook,
                events=EventSink(self.events.append),
                clock=Clock(monotonic=lambda: self.now_s),
                spawn=lambda work: self.tasks.append(asyncio.create_task(work())),
                spares=self.spares,
            )
            self.restoring = Restore(
                cast("RestorableRun", self.run),
                cast("Collaborators", collaborators),
                guard=self.guard,
                **more,
            )
            try:
                yield self.restoring
            finally:
                while self.tasks:
                    await asyncio.wait([self.tasks.pop()])
                assert self.opened == [] or more.get("ahead"), "it may take long"
                self.noted = dict((await notebook.notes()).bad)

    def sources(self) -> list[str | None]:
        """What clients were made from, in their order."""
        return [client.source for client in self.made]

    def left_open(self) -> list[Client]:
        return [client for client in self.made if client not in self.closed]
