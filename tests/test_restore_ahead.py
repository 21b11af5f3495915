"""What is made ready while a checkpoint is chosen, spare clients, and what a try is made with."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any, cast

import anyio
import pytest
from made import NOW, listed_json, record
from made_restores import REFUSED, Client, World, answer_at
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tinker_recovery import LeaseLost, NoUsableCheckpoint, StatusUnavailable
from tinker_recovery.checkpoints import CheckpointRecord, checkpoint_metadata
from tinker_recovery.checkpoints.canary import ASKED
from tinker_recovery.clock import Clock
from tinker_recovery.recovery.restore import Restored
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.service import Patience
from tinker_recovery.service.guard import Guard
from tinker_recovery.telemetry import names


def step_of(restored: Restored) -> int | None:
    return None if restored.checkpoint is None else restored.checkpoint.step


def is_of(restored: Restored, client: Client) -> bool:
    return restored.connection is cast("Any", client)


# -- ahead of the choice --------------------------------------------------------------------------


async def test_the_one_that_will_be_chosen_is_loaded_and_asked_while_it_is_chosen() -> None:
    world = World(1, 2, stored=True)
    made_before: list[int] = []
    world.on_listed = lambda: made_before.append(len(world.made))
    restored = await world.restore(ahead=True)
    (client,) = world.made
    assert (made_before, client.source) == ([1], world.where(2))
    assert is_of(restored, client)
    assert (step_of(restored), restored.answer, client.asked) == (2, answer_at(2), 1)
    assert (world.pendings, world.given_back) == (world.opened, [])
    assert world.closed == []
    (created,) = [each for each in world.events if each.name == names.EVENT_CLIENT_CREATED]
    assert created.fields == {names.RUN_ID: "new-0"}


async def test_where_it_is_not_known_what_will_be_chosen_a_session_is_opened() -> None:
    world = World(1, stored=False)
    opened_before: list[int] = []
    world.on_listed = lambda: opened_before.append(len(world.opened))
    restored = await world.restore(ahead=True)
    assert (opened_before, step_of(restored)) == ([1], 1)
    assert (world.pendings, world.given_back) == (world.opened, [])


@pytest.mark.parametrize("ahead", [True, False])
async def test_what_another_process_has_rejected_meanwhile_is_not_restored(*, ahead: bool) -> None:
    world = World(1, 2, stored=True)
    restored = await world.restore(ahead=ahead, bad={world.where(2): "other weights"})
    assert step_of(restored) == 1
    assert is_of(restored, world.made[-1])
    assert world.closed == world.made[:-1], "what was made ahead is of another checkpoint"
    assert world.sources() == [world.where(2)] * ahead + [world.where(1)]
    assert world.restoring.passed_over.keys() == {world.where(2)}


async def test_what_the_user_may_have_replaced_is_loaded_once_it_has_been_listed() -> None:
    world = World(1, stored=True)
    world.save(2, by="user")
    restored = await world.restore(ahead=True)
    assert world.sources() == [world.where(2)] * 2
    assert is_of(restored, world.made[1])
    assert world.closed == world.made[:1]


async def test_other_weights_made_ahead_are_rejected_and_the_next_is_made_in_a_new_client() -> None:
    world = World(1, 2, stored=True)
    world.answers[world.where(2)] = [answer_at(1)]
    restored = await world.restore(ahead=True)
    wrong, right = world.made
    assert (step_of(restored), wrong.asked, right.asked) == (1, ASKED, 1)
    assert world.closed == [wrong]
    assert world.noted.keys() == {world.where(2)}


async def test_what_is_refused_ahead_is_rejected_once_it_is_chosen() -> None:
    world = World(1, 2, stored=True)
    world.errors[world.where(2)] = [REFUSED]
    assert step_of(await world.restore(ahead=True)) == 1
    assert world.noted.keys() == {world.where(2)}


async def test_where_nothing_can_be_chosen_what_was_made_ahead_is_closed() -> None:
    world = World(2, stored=True)
    world.listed.clear()
    with pytest.raises(StatusUnavailable):
        await world.restore(ahead=True)
    assert len(world.made) == 1
    assert world.closed == world.made
    without = World(origin=None)
    with pytest.raises(NoUsableCheckpoint):
        await without.restore(ahead=True)
    assert (without.given_back, without.made) == (without.opened, [])


async def test_who_cancels_a_restore_has_no_client_asked_that_is_being_closed() -> None:
    world = World(2, stored=True)
    world.answers_late = True
    world.guard = claim = Claim()
    asking: list[bool] = []

    async def look(_: Client) -> None:
        await anyio.wait_all_tasks_blocked()
        asking.append(any("Ahead.make" in repr(task) and not task.done() for task in before))

    world.on_close = look
    restoring = asyncio.create_task(world.restore(ahead=True))
    await claim.announced.wait()
    await anyio.wait_all_tasks_blocked()
    before = list(world.tasks)
    restoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    assert (world.closed, asking) == (world.made, [False])


# -- whether the canary is asked ------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(
    ("known", "lost", "asked"), [(True, 0, 1), (True, 1, 1), (False, 0, 1), (False, 1, 0)]
)
async def test_with_nothing_to_compare_with_it_is_not_asked_of_who_did_not_answer_it(
    lost: int, asked: int, *, ahead: bool, known: bool
) -> None:
    world = World(2, stored=True)
    world.known.prompt.lost = lost
    if not known:
        world.known.canaries.forget("a", 2)
        world.known.began = None
    restored = await world.restore(ahead=ahead)
    assert [client.asked for client in world.made] == [asked]
    assert restored.answer == (answer_at(2) if asked else None)


async def test_without_a_canary_nothing_is_asked_ahead() -> None:
    world = World(2, canary=False, stored=True)
    restored = await world.restore(ahead=True)
    assert ([client.asked for client in world.made], restored.answer) == ([0], None)


# -- spare clients --------------------------------------------------------------------------------


class Spare:
    """The spares of one run: one client, loaded from a checkpoint, and how often it was cut off."""

    def __init__(self, world: World, step: int) -> None:
        self.path = world.where(step)
        self.client: Client | None = Client(world, 100, self.path)
        self.was = self.client
        self.asked_for: list[str] = []
        self.met = 4
        world.spares = cast("Any", self)

    def take(self, run: str, path: str) -> Client | None:
        assert run == "r"
        self.asked_for.append(path)
        if path != self.path:
            return None
        client, self.client = self.client, None
        return client

    def outages(self, run: str) -> int:
        assert run == "r"
        return self.met


class Claim(Guard):
    """A claim that is noted in each session, or lost by then."""

    def __init__(self, *, lost: bool = False) -> None:
        super().__init__()
        self.noted: list[str] = []
        self.announced = anyio.Event()
        self._lost = lost

    async def announce_run(self, run_id: str) -> None:
        self.noted.append(run_id)
        self.announced.set()
        if self._lost:
            raise LeaseLost("it is another's", run="r")


async def test_a_spare_of_the_checkpoint_chosen_takes_over_once_the_canary_agrees(
    spans: InMemorySpanExporter,
) -> None:
    world = World(1, 2, stored=True)
    spare = Spare(world, 2)
    world.guard = claim = Claim()
    restored = await world.restore(ahead=True)
    assert is_of(restored, spare.was)
    assert (world.made, world.opened, world.closed) == ([], [], [])
    assert (step_of(restored), restored.answer, spare.was.asked) == (2, answer_at(2), 1)
    assert claim.noted == ["new-100"]
    (created,) = [each for each in world.events if each.name == names.EVENT_CLIENT_CREATED]
    assert "its spare client takes over" in created.message
    assert created.fields == {names.RUN_ID: "new-100"}
    (span,) = [each for each in spans.get_finished_spans() if each.name == names.SPAN_CREATE]
    assert span.attributes is not None
    assert span.attributes[names.SPARE] is True
    assert span.attributes[names.RUN_ID] == "new-100"


@pytest.mark.parametrize(
    "why", ["no canary", "no canary any more", "no answer", "another", "not ahead"]
)
async def test_a_spare_whose_weights_nothing_could_be_compared_with_is_left_alone(
    why: str,
) -> None:
    steps = (2,) if why == "no answer" else (1, 2)
    world = World(*steps, canary=why != "no canary", stored=True)
    if why == "no canary any more":
        world.known.prompt.drop("the service refuses it")
    spare = Spare(world, 1 if why == "another" else 2)
    if why == "no answer":
        world.known.canaries.forget("a", 2)
        world.known.began = None
    restored = await world.restore(ahead=why != "not ahead")
    assert spare.client is spare.was
    assert spare.asked_for == ([spare.path.replace("1", "2")] if why == "another" else [])
    assert (step_of(restored), world.sources()) == (2, [world.where(2)])


@pytest.mark.parametrize("why", ["an outage", "other weights", "an error"])
async def test_a_spare_that_may_be_wrong_is_closed_and_its_checkpoint_loaded_anew(
    why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is wrong with a spare says nothing of its checkpoint."""
    caplog.set_level(logging.INFO)
    world = World(1, 2, stored=True)
    spare = Spare(world, 2)

    def ask(client: Client) -> None:
        if client is spare.was and why == "an outage":
            spare.met += 1
        if client is spare.was and why == "an error":
            raise ValueError("no forward")
        wrong = client is spare.was and why == "other weights"
        world.answers[world.where(2)] = [answer_at(1 if wrong else 2)]

    world.on_asked = ask
    restored = await world.restore(ahead=True)
    (client,) = world.made
    assert is_of(restored, client)
    assert (step_of(restored), world.closed) == (2, [spare.was])
    assert (world.pendings, world.opened) == (["session 0"], ["session 0"])
    assert (world.noted, world.known.bad) == ({}, {})
    assert "run r: its spare client is not used: " in caplog.text
    because = {"an outage": "an outage was met", "an error": "no forward"}
    assert because.get(why, "are not the ones that were saved") in caplog.text


async def test_a_spare_of_what_is_not_chosen_after_all_is_closed() -> None:
    world = World(1, 2, stored=True)
    spare = Spare(world, 2)
    restored = await world.restore(ahead=True, bad={world.where(2): "other weights"})
    assert (step_of(restored), world.closed) == (1, [spare.was])
    assert world.pendings == [None]


async def test_a_spare_of_a_run_that_is_another_processs_by_now_is_closed() -> None:
    world = World(1, 2, stored=True)
    spare = Spare(world, 2)
    world.guard = Claim(lost=True)
    with pytest.raises(LeaseLost):
        await world.restore(ahead=True)
    assert (world.made, world.closed) == ([], [spare.was])


# -- what was replaced while it was loaded --------------------------------------------------------


def _replace_each_time(world: World) -> None:
    minutes = iter(range(1, 99))

    def replace(_: Client) -> None:
        later = (NOW + timedelta(minutes=next(minutes))).isoformat()
        world.listed[-1] = {**world.listed[-1], "time": later}

    world.on_made = replace


def root(world: World) -> CheckpointRecord:
    """What the user has started the run from: a save of their own, in another Tinker run."""
    made = record(0, "base", lineage="another", saved_by="user")
    metadata = checkpoint_metadata(
        step=0, lineage="another", attempt="base", parent=None, saved_by="user"
    )
    world.listed.append(listed_json(made, metadata))
    return made


@pytest.mark.parametrize("has_root", [True, False])
async def test_what_is_replaced_each_time_it_is_loaded_is_waited_for(*, has_root: bool) -> None:
    world = World(origin=None, canary=False)
    if has_root:
        world.run.root = root(world)
    world.save(2, by="user")
    _replace_each_time(world)
    bad = {world.run.root.path: "other weights"} if has_root else {}
    with pytest.raises(StatusUnavailable, match="another save was written to its path while it"):
        await world.restore(bad=bad)
    assert len(world.made) == 2
    assert world.closed == world.made
    assert world.known.skipped == {}, "it is tried again by who waits"


async def test_what_the_user_started_from_is_not_waited_for_once_it_was_replaced() -> None:
    world = World(origin=None, canary=False)
    world.run.root = root(world)
    _replace_each_time(world)
    with pytest.raises(NoUsableCheckpoint):
        await world.restore()
    assert world.closed == world.made


async def test_what_was_replaced_once_and_is_gone_by_then_is_not_waited_for() -> None:
    world = World(origin=None, canary=False)
    world.save(2, by="user")
    world.on_made = lambda _: world.listed.clear()
    with pytest.raises(NoUsableCheckpoint, match="has no checkpoint yet"):
        await world.restore()
    assert world.closed == world.made


# -- what it is done with -------------------------------------------------------------------------


async def test_a_run_without_a_claim_is_restored_with_the_patience_of_its_policy() -> None:
    world = World(1)
    world.guard = None
    assert step_of(await world.restore()) == 1
    assert [each.silence_s for each in world.patiences] == [world.policy.create_timeout_s]
    other = World(1)
    await other.restore(patience=Patience(3.0))
    assert other.patiences == [Patience(3.0)]


async def test_the_time_that_the_service_takes_is_added_up() -> None:
    world = World(1)
    waiting = ServiceTime(Clock(monotonic=lambda: world.now_s))

    def pass_by(seconds: float) -> None:
        world.now_s += seconds

    world.on_listed = lambda: pass_by(1.0)
    world.on_made = lambda _: pass_by(10.0)
    world.on_asked = lambda _: pass_by(100.0)
    await world.restore(waiting=waiting)
    assert waiting.total_s == 111.0


async def test_a_clients_creation_and_its_verification_are_spans(
    spans: InMemorySpanExporter,
) -> None:
    world = World(1, 2)
    world.answers[world.where(2)] = [answer_at(1)]
    await world.restore()
    of = [span for span in spans.get_finished_spans() if span.attributes is not None]
    made = [span.attributes[names.RUN_ID] for span in of if span.name == names.SPAN_CREATE]  # type: ignore[index]  # as above
    assert made == ["new-0", "new-1"]
    verified = [span for span in of if span.name == names.SPAN_VERIFY]
    assert [span.status.is_ok for span in verified] == [False, True]
    assert verified[0].attributes is not None
    assert verified[0].attributes[names.ERROR_TYPE] == names.BAD_CHECKPOINT


async def test_how_far_a_run_has_come_is_asked_without_saying_that_it_is_restored() -> None:
    world = World(1, 2)
    assert await world.progress() == 2
    assert (world.events, world.made) == ([], [])
    assert await World().progress() is None
