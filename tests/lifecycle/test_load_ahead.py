"""The newest checkpoint known is loaded while the list is still being asked for."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from inspection import expect_size
from loops import ADAM, MODEL, SEED, batch, quick, train, undisturbed_state

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryEvent, Supervisor
from tinker_recovery.journal import Journal, default_path
from tinker_recovery.recovery.ahead import Ahead
from tinker_recovery.run import retiring
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 14


def _loads(local: LocalTinker) -> int:
    return local.stats.by_route.get("load_weights", 0)


async def test_a_load_has_begun_before_the_service_has_said_what_there_is(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    loads: list[int] = []

    def note(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_DETECTED:
            local.inject(FaultRule("slow", None, "run_checkpoints", delay_s=1.0, times=1))
        if event.name == names.EVENT_CHECKPOINT_SELECTED:
            loads.append(_loads(local) - before)

    before = _loads(local)
    local.poison(at_step=12)
    async with Supervisor(quick(), on_event=note) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
        )
    (run,) = supervisor.runs
    assert loads == [1]
    assert _loads(local) - before == 1, "and it was not loaded twice"
    assert [attempt.start_step for attempt in run.attempts] == [0, 10]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_the_session_of_the_dead_attempt_is_finished_before_its_successor_is_chosen(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service may allow only so many training clients at a time."""
    monkeypatch.setattr(retiring, "CLOSE_BEHIND_S", 30.0)  # closing its client would come too late
    states: list[str] = []

    def note(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_DETECTED:
            local.inject(FaultRule("slow", None, "run_checkpoints", delay_s=1.0, times=1))
        if event.name == names.EVENT_CHECKPOINT_SELECTED:
            dead = supervisor.runs[0].segments[0].run_id.partition(":train:")[0]
            states.append(local.sessions()[dead])

    local.poison(at_step=12)
    async with Supervisor(quick(), on_event=note) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
        )
    assert len(states) == 1
    assert states[0] != "active"


@pytest.mark.parametrize("why", ["is not listed any more", "has another size", "does not load"])
async def test_the_choice_has_the_last_word_and_what_was_loaded_for_another_is_closed(
    local: LocalTinker, why: str
) -> None:
    """The fixture sees to it that no session is left open."""
    expected = await undisturbed_state(local, steps=STEPS)
    newest: list[str] = []

    def note(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_CHECKPOINT_SAVED and not newest:
            path = str(event.fields[names.CHECKPOINT_PATH])
            if "/step-00000010-" in path:
                newest.append(path)
                if why == "has another size":
                    expect_size(supervisor.runs[0], path, 7)
        if event.name == names.EVENT_DETECTED and why == "is not listed any more":
            local.damage(newest[0], "deleted")
        if event.name == names.EVENT_DETECTED and why == "does not load":
            local.damage(newest[0], "truncated")

    local.poison(at_step=12)
    async with Supervisor(quick(), on_event=note) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
        )
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_what_another_process_has_found_to_be_bad_is_not_used_though_it_was_loaded_ahead(
    local: LocalTinker,
) -> None:
    """The journal's notes are read while the list is asked for, and count for the choice."""
    newest: list[str] = []

    def note(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_CHECKPOINT_SAVED and not newest:
            path = str(event.fields[names.CHECKPOINT_PATH])
            if "/step-00000010-" in path:
                newest.append(path)
        if event.name == names.EVENT_DETECTED:
            with Journal(default_path(), service=local.base_url) as journal:
                journal.mark_bad(newest[0], "its weights are of another run")

    local.poison(at_step=12)
    async with Supervisor(quick(), on_event=note) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
        )
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [0, 5]


def _ahead() -> tuple[Ahead, list[asyncio.Task[None]]]:
    """What makes a client in a task, and never comes to an end by itself."""
    tasks: list[asyncio.Task[None]] = []

    def spawn(function: Callable[[], Any]) -> None:
        tasks.append(asyncio.create_task(function()))

    async def close(_: object) -> None:
        raise AssertionError("nothing was made")

    ahead = Ahead(cast("Any", None), spawn, close)
    ahead.make("tinker://a/weights/1", cast("Callable[[], Awaitable[Any]]", _never), None)
    return ahead, tasks


async def _never() -> None:
    await anyio.sleep_forever()


async def test_a_client_whose_making_was_cancelled_is_an_error_that_says_so() -> None:
    ahead, tasks = _ahead()
    await asyncio.sleep(0)
    await ahead.discard()
    await asyncio.wait(tasks)
    with pytest.raises(RuntimeError, match="making a client ahead was cancelled"):
        await ahead.take()


async def test_who_cancels_the_making_of_a_client_sees_it_cancelled() -> None:
    ahead, (task,) = _ahead()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    with pytest.raises(RuntimeError, match="cancelled"):
        await ahead.take()


async def test_who_discards_what_was_dropped_does_not_wait_until_it_is_closed() -> None:
    """A client that is slow to be given up must not hold up the recovery that needs it no more."""
    ended = anyio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def make() -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await ended.wait()

    def spawn(function: Callable[[], Any]) -> None:
        tasks.append(asyncio.create_task(function()))

    async def close(_: object) -> None:
        raise AssertionError("nothing was made")

    ahead = Ahead(cast("Any", None), spawn, close)
    ahead.make("tinker://a/weights/1", make, None)
    paths = [ahead.path]
    await asyncio.sleep(0)
    ahead.drop()
    paths.append(ahead.path)
    assert paths == ["tinker://a/weights/1", None]
    await asyncio.sleep(0)
    discarding = asyncio.create_task(ahead.discard())
    await asyncio.wait([discarding], timeout=5)
    done = [task.done() for task in (*tasks, discarding)]
    ended.set()
    await asyncio.wait([*tasks, discarding])
    assert done == [False, False, True]


@pytest.mark.parametrize("how", ["dropped", "discarded", "taken"])
async def test_what_was_made_ahead_is_closed_once_unless_it_was_taken(how: str) -> None:
    tasks: list[asyncio.Task[None]] = []
    closed: list[object] = []
    made, answer = cast("Any", object()), (-1.0,)

    async def make() -> Any:
        return made

    async def ask(connection: object) -> Any:
        assert connection is made
        return answer

    async def close(connection: object) -> None:
        closed.append(connection)

    def spawn(function: Callable[[], Any]) -> None:
        tasks.append(asyncio.create_task(function()))

    ahead = Ahead(cast("Any", None), spawn, close)
    ahead.drop()
    assert tasks == [], "nothing was begun"
    ahead.make("tinker://a/weights/1", make, ask)
    if how == "taken":
        assert await ahead.take() is made
        assert ahead.path is None
        assert await ahead.answer_of(cast("Any", object())) is None, "of another client"
        assert await ahead.answer_of(made) == answer
        assert await ahead.answer_of(made) is None, "it is given once"
    if how == "dropped":
        ahead.drop()
        await asyncio.wait(tasks)
        assert closed == [made]
    for _ in range(2):
        await ahead.discard()
    await asyncio.wait(tasks)
    assert closed == ([] if how == "taken" else [made])


@pytest.mark.parametrize("way", ["drop", "discard"])
async def test_a_client_made_ahead_is_closed_though_who_closes_it_is_cancelled(way: str) -> None:
    closed: list[object] = []
    made = cast("Any", object())

    async def make() -> Any:
        return made

    async def ask(_: object) -> Any:
        await anyio.sleep_forever()

    async def close(connection: object) -> None:
        await anyio.lowlevel.checkpoint()
        closed.append(connection)

    class Backend:
        """Opens a session, and closes it."""

        def open_ahead(self) -> str:
            return "a session"

        async def discard(self, session: str) -> None:
            await close(session)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            ending = anyio.CancelScope()

            async def ended(work: Callable[[], Any]) -> None:
                with ending:
                    await work()

            spawned: list[Callable[[], Any]] = []
            ahead = Ahead(cast("Any", Backend()), spawned.append, close)
            ahead.open()
            if way == "drop":
                assert ahead.session() is not None
                assert ahead.session() is None, "it is the caller's now"
            ahead.make("tinker://a/weights/1", make, ask)
            group.start_soon(spawned.pop())
            await anyio.wait_all_tasks_blocked()
            ending.cancel()
            if way == "discard":
                await ended(ahead.discard)
            else:
                ahead.drop()
                await ended(spawned.pop())
    assert closed == (["a session", made] if way == "discard" else [made])


async def test_an_answer_that_failed_is_an_error_of_who_asks_for_it_and_not_of_who_takes() -> None:
    tasks: list[asyncio.Task[None]] = []
    made = cast("Any", object())

    async def make() -> Any:
        return made

    async def ask(_: object) -> Any:
        raise ZeroDivisionError

    async def close(_: object) -> None:
        raise AssertionError("it was taken")

    ahead = Ahead(cast("Any", None), lambda work: tasks.append(asyncio.create_task(work())), close)
    ahead.make("tinker://a/weights/1", make, ask)
    assert await ahead.take() is made
    with pytest.raises(ZeroDivisionError):
        await ahead.answer_of(made)
    ahead.drop()
    await asyncio.wait(tasks)
    assert await ahead.answer_of(made) is None, "dropped: nobody waits for it"


async def test_what_another_save_may_still_replace_is_listed_before_it_is_loaded(
    local: LocalTinker,
) -> None:
    """Otherwise what was loaded and what was listed might be two things of one name."""
    loads: list[int] = []

    async def overwriting(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            await forward
            await attempt.client.save_state("latest", overwrite=True)

    def note(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_DETECTED:
            local.inject(FaultRule("slow", None, "run_checkpoints", delay_s=1.0, times=1))
        if event.name == names.EVENT_CHECKPOINT_SELECTED:
            loads.append(_loads(local))

    local.poison(at_step=12)
    given = quick(checkpoints=CheckpointPolicy(save_every=100))
    async with Supervisor(given, on_event=note) as supervisor:
        await supervisor.run(overwriting, base_model=MODEL, rank=8, seed=SEED)
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [0, 11]
    assert loads == [0]
