"""Which runs a Supervisor knows, and how one is opened: with runs and a journal made up here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from made import record
from pydantic import SecretStr

from tinker_recovery import RecoveryEvent, RecoveryPolicy, ServiceUnusable, UsageError
from tinker_recovery.clock import Clock
from tinker_recovery.errors import StatusRefused
from tinker_recovery.run import register
from tinker_recovery.run.options import StartPlan, plan_start
from tinker_recovery.run.register import RunRegister
from tinker_recovery.service import Endpoint
from tinker_recovery.telemetry import EventSink, names

URL = "http://127.0.0.1:1"
Work = Callable[[], Coroutine[object, object, None]]


def plan(**given: Any) -> StartPlan:
    start: Any = {"base_model": "m", "rank": 8, **given}
    return plan_start(start, restore_optimizer=True)


class Run:
    """A run as the register sees it."""

    def __init__(self, name: str, log: list[object]) -> None:
        self.name = name
        self.ended = self.recovering = False
        self.failure: BaseException | None = None
        self.lost: BaseException | None = None
        self.current: Any = None
        self.metrics: dict[str, float] = {}
        self.attempts = SimpleNamespace(begun=anyio.Event())
        self.checkpoints = SimpleNamespace(read=self._read)
        self.guard = object()
        self.on_read: BaseException | None = None
        self._log = log

    async def _read(self, _: object) -> None:
        self._log.append(("read", self.name))
        if self.on_read is not None:
            raise self.on_read

    async def abandon(self) -> None:
        self._log.append(("abandon", self.name, self.attempts.begun.is_set()))


class World:
    """A register, with what stands behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **policy: Any) -> None:
        self.log: list[object] = []
        self.events: list[RecoveryEvent] = []
        self.spawned: list[Work] = []
        self.on_open: BaseException | None = None
        self.on_read: BaseException | None = None
        self.opening: Callable[[], Coroutine[object, object, None]] | None = None
        self.answer: BaseException | None = None
        self.checked: list[object] = []
        for name in ("open_run", "leave_unopened", "find_checkpoint"):
            monkeypatch.setattr(register, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(register, "OptimizerCheck", lambda _: SimpleNamespace(run=self._check))
        endpoint = Endpoint(URL, SecretStr("tml-x"))
        collaborators: Any = SimpleNamespace(
            policy=RecoveryPolicy(**policy),
            reader=SimpleNamespace(http=SimpleNamespace(endpoint=endpoint, ask=self._ask)),
            clock=Clock(sleep=self._sleep),
            events=EventSink(self.events.append),
            spawn=self.spawned.append,
            greeting=SimpleNamespace(started=self._started),
        )
        parts: Any = (None, None, None, None, None, None)
        self.register = RunRegister(collaborators, *parts)

    async def _open_run(self, *given: Any, **_: object) -> Any:
        if self.opening is not None:
            await self.opening()
        if self.on_open is not None:
            raise self.on_open
        guard = SimpleNamespace(release=self._release)
        return SimpleNamespace(record=f"record of {given[3]}", guard=guard)

    async def _leave_unopened(self, of: object, error: BaseException) -> None:
        self.log.append(("left", of, error))

    async def _release(self) -> None:
        self.log.append("released")

    async def _find_checkpoint(self, _: object, where: str) -> Any:
        self.log.append(("found", where))
        return record(4)

    async def _check(self, origin: object) -> None:
        self.checked.append(origin)

    async def _ask(self, *given: object, **_: object) -> None:
        self.log.append(given[:2])
        if self.answer is not None:
            raise self.answer

    async def _sleep(self, seconds: float) -> None:
        self.log.append(("slept", seconds))

    def _started(self, name: str, *, named: bool, recovers: bool) -> None:
        self.log.append(("started", name, named, recovers))

    def make(self, *_: object) -> Any:
        made = Run(self.name, self.log)
        made.on_read = self.on_read
        return made

    async def open(self, name: str = "r", of: StartPlan | None = None) -> Any:
        self.name = name
        return await self.register.open(of or plan(name=name), name, self.make)

    async def work(self) -> None:
        """Do what was to be done in the background, but for the look at a lost claim."""
        for each in list(self.spawned):
            await each()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
async def test_a_run_is_opened_read_announced_and_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, *, named: bool, enabled: bool
) -> None:
    world = World(monkeypatch, enabled=enabled, verify_optimizer=False)
    run = await world.open(of=plan(**({"name": "r"} if named else {})))
    assert world.register.by_name == {"r": run}
    assert list(world.register.monitored) == ["r"]
    assert world.register.monitored["r"].name == "r"
    assert world.log == [("read", "r"), ("started", "r", named, enabled)]
    assert world.events == []
    assert world.register.under_way == 1
    run.ended = True
    assert world.register.under_way == 0
    assert len(world.spawned) == 2, "the look at its beginning, and at its claim"


async def test_a_run_of_a_job_says_of_which(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    await world.open(of=plan(name="r", job="j7"))
    assert [(each.name, each.message) for each in world.events] == [(names.EVENT_JOB_TRY, "job j7")]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("from_model", [True, False])
async def test_whether_the_optimizer_is_restored_is_found_out_with_a_model_to_make_anew(
    monkeypatch: pytest.MonkeyPatch, *, verify: bool, from_model: bool
) -> None:
    world = World(monkeypatch, verify_optimizer=verify)
    of = plan() if from_model else plan_start({"start": print}, restore_optimizer=True)
    await world.open(of=of)
    world.register.by_name["r"].attempts.begun.set()
    await world.work()
    assert world.checked == ([of.origin] if verify and from_model else [])


@pytest.mark.parametrize(
    ("strategy", "looked"), [("tinker://a/weights/4", True), ("latest", False)]
)
async def test_a_checkpoint_to_go_back_to_is_looked_for_before_the_run_begins(
    monkeypatch: pytest.MonkeyPatch, strategy: str, *, looked: bool
) -> None:
    world = World(monkeypatch, checkpoint_strategy=strategy)
    await world.open()
    assert (("found", strategy) in world.log) == looked


# -- names ---------------------------------------------------------------------------------------


async def test_a_name_is_taken_from_the_opening_on_until_the_run_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    refused: list[bool] = []

    async def again() -> None:
        world.opening = None
        with pytest.raises(UsageError, match="of a run under way"):
            await world.open()
        await world.open("other")
        world.name = "r"
        refused.append(True)

    world.opening = again
    run = await world.open()
    assert refused == [True]
    with pytest.raises(UsageError, match="name='r'"):
        world.register.check_name("r")
    run.ended = True
    world.register.check_name("r")
    assert await world.open() is not run


@pytest.mark.parametrize("where", ["opening", "reading"])
async def test_a_run_that_cannot_be_opened_is_not_known_and_its_name_and_claim_are_free(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    world, error = World(monkeypatch), ValueError("no")
    if where == "opening":
        world.on_open = error
    else:
        world.on_read = error
    with pytest.raises(ValueError, match="no"):
        await world.open()
    assert (world.register.by_name, world.register.monitored) == ({}, {})
    left = [("left", "record of r", error), "released"]
    assert world.log == ([] if where == "opening" else [("read", "r"), *left])
    world.on_open = world.on_read = None
    await world.open()


async def test_the_claim_is_given_free_though_the_journal_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.on_read = ValueError("no")

    async def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(register, "leave_unopened", fail)
    with pytest.raises(OSError):  # noqa: PT011 - a bare one
        await world.open()
    assert world.log[-1] == "released"


async def test_a_service_that_refuses_the_credential_is_said_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.on_open = StatusRefused("HTTP 401", status_code=401)
    with pytest.raises(ServiceUnusable, match="refuses the credential"):
        await world.open()


async def test_the_oldest_runs_that_have_ended_are_forgotten_but_for_those_lost_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert register.KEPT == 1000
    monkeypatch.setattr(register, "KEPT", 2)
    world = World(monkeypatch)
    for name in "abcdef":
        run = await world.open(name)
        run.ended = name != "a"
        run.lost = ValueError() if name == "b" else None
    assert list(world.register.by_name) == list(world.register.monitored) == [*"abdef"]
    await world.open("g")
    assert list(world.register.by_name) == [*"abefg"]


# -- before it has begun -------------------------------------------------------------------------


@pytest.mark.parametrize("until", ["opened", "begun"])
async def test_why_a_run_has_not_begun_is_said_until_it_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, until: str
) -> None:
    world = World(monkeypatch)
    world.answer = StatusRefused("HTTP 401", status_code=401)
    async with anyio.create_task_group() as group:
        looks = anyio.Event()

        async def look(work: Work) -> None:
            await work()
            looks.set()

        async def opening() -> None:
            group.start_soon(look, world.spawned[0])
            await anyio.wait_all_tasks_blocked()
            assert "run r has not begun" in caplog.text
            assert not looks.is_set(), "it may begin yet"

        with caplog.at_level(logging.WARNING):
            world.opening = opening
            if until == "opened":
                world.on_open = ValueError("no")
                with pytest.raises(ValueError, match="no"):
                    await world.open()
            else:
                run = await world.open()
                await anyio.wait_all_tasks_blocked()
                assert not looks.is_set(), "it has not made a client"
                run.attempts.begun.set()
            with anyio.fail_after(5):
                await looks.wait()
    assert ("slept", 5.0) in world.log


# -- progress, and the end -----------------------------------------------------------------------


async def test_a_runs_progress_is_another_value_once_it_has_done_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    run = await world.open()
    assert world.register.progress() == {"r": None}
    facts = {"number": 1, "step": 3, "saves": 2, "read": 5}

    def attempt() -> Any:
        return SimpleNamespace(
            number=facts["number"],
            client=SimpleNamespace(
                step=facts["step"], meter=SimpleNamespace(read=lambda: facts["read"])
            ),
            saver=SimpleNamespace(steps_done=lambda: facts["saves"]),
        )

    run.current = attempt()
    before = world.register.progress()
    assert before == world.register.progress()
    assert before["r"] is not None
    for name in facts:
        facts[name] += 1
        run.current = attempt()
        now = world.register.progress()
        assert now != before, name
        before = now
    run.metrics = {"loss": 1.0}
    assert world.register.progress() != before
    run.recovering = True
    assert world.register.progress() != world.register.progress(), "that has deadlines of its own"
    run.current = None
    assert world.register.progress() != world.register.progress()


@pytest.mark.parametrize("over", [{"ended": True}, {"failure": ValueError()}])
async def test_a_run_that_is_over_or_given_up_makes_no_progress_and_is_not_asked_for_any(
    monkeypatch: pytest.MonkeyPatch, over: dict[str, Any]
) -> None:
    world = World(monkeypatch)
    run = await world.open()
    for name, value in over.items():
        setattr(run, name, value)
    assert world.register.progress() == {}


async def test_at_the_end_each_run_is_closed_and_nothing_waits_for_it_to_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    for name in "ab":
        await world.open(name)
    world.log.clear()
    await world.register.close()
    assert sorted(map(str, world.log)) == [str(("abandon", name, True)) for name in "ab"]
