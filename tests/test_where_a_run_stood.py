"""Where a run stands that another process left: by its journal, and a service made up here."""

from __future__ import annotations

import dataclasses
import logging
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made import LINEAGE, listed_json, path, record
from tinker import types

from tinker_recovery import (
    CheckpointPolicy,
    NoUsableCheckpoint,
    RecoveryPolicy,
    StatusRefused,
    StatusUnavailable,
)
from tinker_recovery.checkpoints import Segment, WeightsFacts, checkpoint_metadata
from tinker_recovery.checkpoints.schedule import AtSteps
from tinker_recovery.clock import Clock
from tinker_recovery.faults import Kind
from tinker_recovery.journal import StoredAttempt
from tinker_recovery.journal.run_sql import StoredRun
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.resume import (
    RunSnapshot,
    finish_session,
    finish_sessions,
    snapshot_of,
    until_read,
)
from tinker_recovery.telemetry.figures import AttemptFigures

SILENT = StatusUnavailable("no answer")
GONE = StatusRefused("HTTP 404", status_code=404)


def attempt(name: str, start: int = 0, **facts: Any) -> StoredAttempt:
    """One in the Tinker run of the same name, whose process was killed."""
    parent = path("a", start) if start else None
    known = StoredAttempt(
        name, name, start, parent, ended=False, sound_step=0, polled_step=0, trusted_to=None,
        faulty=False,
    )  # fmt: skip
    return dataclasses.replace(known, **facts)


class World:
    """A service, with a run of it that is in the journal of another process."""

    def __init__(self, *attempts: StoredAttempt, **found: Any) -> None:
        self.listed: dict[str, list[types.Checkpoint]] = {}
        self.corrupted: set[str] = set()
        self.unknown: set[str] = set()
        """Tinker runs whose status the service refuses."""
        self.errors: list[Exception] = []
        """What the next questions end in."""
        self.asked: list[str] = []
        """Tinker runs whose checkpoints were asked for."""
        self.told: list[tuple[object, ...]] = []
        self.sent: list[tuple[object, ...]] = []
        self.said: int | Exception = 200
        self.slept: list[float] = []
        self.now_s = 1000.0
        self.clock = Clock(lambda: self.now_s, lambda: 0.0, self._sleep, lambda: 0.0)
        self.reader: Any = SimpleNamespace(
            checkpoints=self._checkpoints,
            run=self._run,
            metadata=SimpleNamespace(
                know=lambda lineage: self.told.append((lineage,)),
                know_attempt=lambda id_, parent: self.told.append((id_, parent)),
            ),
            http=SimpleNamespace(
                clock=SimpleNamespace(ahead_s=30.0),
                send=self._send,
                endpoint=SimpleNamespace(base_url="http://of.this.test"),
            ),
        )
        stood = StoredRun(LINEAGE, {}, "training", "", 0, 0, attempts, (), ())
        self.found = dataclasses.replace(stood, **found)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    async def _checkpoints(self, run_id: str) -> list[types.Checkpoint]:
        self.asked.append(run_id)
        if self.errors:
            raise self.errors.pop(0)
        return self.listed.get(run_id, [])

    async def _run(self, run_id: str) -> Any:
        if run_id in self.unknown:
            raise GONE
        corrupted = run_id in self.corrupted
        return SimpleNamespace(
            training_run_id=run_id, corrupted=corrupted, base_model="m", lora_rank=8
        )

    async def _send(self, *request: str, json: object) -> int:
        self.sent.append((*request, json))
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    def save(self, run: str, *steps: int, attempt: str | None = None, **facts: Any) -> None:
        """The service lists these, of an attempt of the same name or another."""
        for step in steps:
            metadata = checkpoint_metadata(
                step=step, lineage=LINEAGE, attempt=attempt or run, parent=None,
                saved_by="schedule", **facts,
            )  # fmt: skip
            made = types.Checkpoint.model_validate(listed_json(record(step, run), metadata))
            self.listed.setdefault(run, []).append(made)

    def list_one_of_the_users(self, run: str, step: int) -> None:
        made = types.Checkpoint.model_validate(listed_json(record(step, run), {}))
        self.listed.setdefault(run, []).append(made)

    async def snapshot(self, parent: str | None = None, **policy: Any) -> RunSnapshot:
        return await snapshot_of(
            "r",
            self.found,
            parent=parent,
            reader=self.reader,
            policy=RecoveryPolicy(**policy),
            clock=self.clock,
        )


# -- what is known of it --------------------------------------------------------------------------


async def test_a_run_stands_in_the_tinker_runs_of_its_attempts_at_the_step_it_had_reached() -> None:
    world = World(
        attempt("a", faulty=True, ended=True),
        attempt("b", 5),
        start_step=2,
        step=7,
        leftovers=("z",),
        trained=(5, 2, 60.0),
    )
    stood = await world.snapshot()
    assert stood.segments == (Segment("a", "a", 0, None), Segment("b", "b", 5, path("a", 5)))
    assert (stood.name, stood.lineage, stood.start_step, stood.step) == ("r", LINEAGE, 2, 7)
    assert stood.weights == WeightsFacts("m", 8)
    assert stood.trained is not None
    meter = stood.trained.meter
    assert stood.trained == AttemptFigures(5, 2, math.inf, 60.0, meter)
    assert stood.root is None
    assert world.told == [(LINEAGE,), ("a", None), ("b", path("a", 5))], "to read saves by name"


async def test_of_a_run_that_is_not_known_to_have_trained_nothing_counts_as_lost() -> None:
    assert (await World(attempt("a")).snapshot()).trained is None


async def test_the_newest_two_attempts_and_what_was_not_handed_over_may_be_open_yet() -> None:
    world = World(attempt("a"), attempt("b", 1), attempt("c", 2), leftovers=("z",))
    assert (await world.snapshot()).sessions == ("z", "b", "c")


async def test_what_the_journal_has_of_checkpoints_is_known_as_far_as_it_is_of_this_run() -> None:
    ours, others = path("b", 5), path("of another run", 6)
    world = World(
        attempt("a", trusted_to=3.0, faulty=True, ended=True),
        attempt("b", 3),
        checkpoints=((ours, 5), (others, 6)),
    )
    known = (await world.snapshot()).checkpoints
    assert known.stored == {ours: ("b", 5)}
    assert (known.trusted_to("a"), known.trusted_to("another")) == (3.0, math.inf)


async def test_checkpoints_end_when_the_journal_says_by_the_clock_of_the_service() -> None:
    scheduled = "tinker://a/weights/step-5"
    world = World(attempt("a"), checkpoints=((scheduled, 5),), ended_at=500.0)
    known = (await world.snapshot()).checkpoints
    assert known.ended(scheduled, now_s=529.0) is None
    assert "its lifetime (ttl_s) ended" in (known.ended(scheduled, now_s=530.0) or "")
    for_ever = World(attempt("a"), checkpoints=((scheduled, 5),))
    assert (await for_ever.snapshot()).checkpoints.ended(scheduled, now_s=1e9) is None


@pytest.mark.parametrize(
    ("saving", "asked"),
    [
        (CheckpointPolicy(), ["b"]),
        (CheckpointPolicy(strategy="best"), ["b", "a"]),
        (CheckpointPolicy(schedule=AtSteps([3])), ["b", "a"]),
    ],
)
async def test_older_segments_are_listed_only_if_each_save_so_far_has_to_be_known(
    saving: CheckpointPolicy, asked: list[str]
) -> None:
    world = World(attempt("a", faulty=True, ended=True), attempt("b", 2))
    world.save("a", 1, 2, metrics={"loss": 2.0})
    world.save("b", 3, metrics={"loss": 1.0})
    stood = await world.snapshot(checkpoints=saving)
    assert world.asked == asked
    older = {("a", 1): {"loss": 2.0}, ("a", 2): {"loss": 2.0}} if "a" in asked else {}
    assert stood.saved == {("b", 3): {"loss": 1.0}, **older}


async def test_what_is_listed_and_none_of_ours_is_no_save_of_the_run() -> None:
    world = World(attempt("a", sound_step=9))
    world.save("a", 5)
    world.list_one_of_the_users("a", 6)
    assert (await world.snapshot()).saved == {("a", 5): {}}


# -- how far it is trusted ------------------------------------------------------------------------


async def test_what_was_saved_after_the_last_step_known_to_be_good_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(attempt("a", sound_step=5))
    world.save("a", 4, 5, 6)
    known = (await world.snapshot()).checkpoints
    assert known.trusted_to("a") == 5
    said = [each.getMessage() for each in caplog.records if "is not restored" in each.getMessage()]
    assert [each.partition(",")[0] for each in said] == [path("a", 6)]


async def test_a_save_of_another_attempt_in_the_same_tinker_run_vouches_for_nothing() -> None:
    world = World(attempt("a", sound_step=2))
    world.save("a", 9, attempt="a", sound_step=4)
    world.save("a", 9, attempt="another", sound_step=9)
    assert (await world.snapshot()).checkpoints.trusted_to("a") == 4


async def test_the_newest_attempt_is_the_one_whose_process_was_killed() -> None:
    world = World(attempt("a", sound_step=1), attempt("b", 2, sound_step=7))
    world.corrupted = {"a"}
    known = (await world.snapshot()).checkpoints
    assert (known.trusted_to("a"), known.trusted_to("b")) == (math.inf, 7)


async def test_a_tinker_run_that_the_service_does_not_know_any_more_is_not_corrupted() -> None:
    world = World(attempt("a", sound_step=7, polled_step=3))
    world.unknown = {"a"}
    stood = await world.snapshot()
    assert (stood.checkpoints.trusted_to("a"), stood.weights) == (7, WeightsFacts())


# -- how it was left ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "orderly", "corrupted", "left_by", "is_orderly"),
    [
        ("finished", False, False, Kind.STOPPED, True),
        ("finished", True, True, Kind.CORRUPTED, False),
        ("stopped", True, False, Kind.STOPPED, True),
        ("stopped", False, False, Kind.STOPPED, False),
        ("stopped", True, True, Kind.CORRUPTED, False),
        ("training", True, False, Kind.PROCESS_LOST, False),
        ("training", False, True, Kind.PROCESS_LOST, False),
    ],
)
async def test_a_run_was_left_in_order_if_it_was_stopped_and_the_service_has_kept_it_since(
    state: str, left_by: Kind, *, orderly: bool, corrupted: bool, is_orderly: bool
) -> None:
    last = attempt("a", sound_step=5, polled_step=5, orderly=orderly)
    world = World(last, state=state, step=5)
    world.save("a", 3, 5)
    world.corrupted = {"a"} if corrupted else set()
    stood = await world.snapshot()
    assert (stood.left_by, stood.orderly) == (left_by, is_orderly)


@pytest.mark.parametrize(
    ("step", "sound", "whole"),
    [(5, 5, True), (5, 9, True), (6, 9, False), (5, 4, False), (2, 0, True), (1, 9, False)],
)
async def test_nothing_of_it_is_lost_if_a_checkpoint_that_may_be_restored_has_its_last_step(
    step: int, sound: int, *, whole: bool
) -> None:
    """Or its newest attempt, which begins at step 2, has done none."""
    world = World(attempt("o", 1), attempt("a", 2, sound_step=sound), state="finished", step=step)
    world.save("a", 3, 5)
    assert (await world.snapshot()).orderly == whole


def test_nothing_is_under_way_of_a_run_that_is_not_here() -> None:
    stood = RunSnapshot("r", LINEAGE, (), CheckpointState("r"))
    assert (stood.start_step, stood.step, stood.recovering, stood.orderly) == (0, 0, False, False)
    assert stood.is_pending(record(5)) is False


# -- what it was started from ---------------------------------------------------------------------


@pytest.mark.parametrize("has_saved", [True, False])
async def test_what_the_user_started_it_from_is_its_root_as_long_as_it_is_what_it_was(
    caplog: pytest.LogCaptureFixture, *, has_saved: bool
) -> None:
    saved = ((path("a", 9), 9),) if has_saved else ()
    world = World(attempt("a", 7), start_step=7, checkpoints=saved)
    world.save("base", 7)
    root = (await world.snapshot(path("base", 7))).root
    assert root is not None
    assert (root.path, root.step) == (path("base", 7), 7)
    world.found = dataclasses.replace(world.found, start_step=8)
    if not has_saved:
        with pytest.raises(NoUsableCheckpoint, match="was written again: it has step 7 now, and"):
            await world.snapshot(path("base", 7))
        return
    assert (await world.snapshot(path("base", 7))).root is None
    assert "what the run was started from is gone: " in caplog.text


# -- a service that is waited for -----------------------------------------------------------------


async def test_a_service_that_does_not_answer_is_asked_again_and_that_is_said_at_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    world = World(attempt("a", sound_step=5))
    world.save("a", 5)
    world.errors = [SILENT] * 3
    stood = await world.snapshot(backoff_s=1.0, backoff_jitter=0.0)
    assert stood.saved == {("a", 5): {}}
    assert world.slept == [1.0, 2.0, 4.0]
    said = [each for each in caplog.records if "looking where the run stood" in each.getMessage()]
    assert [each.levelno for each in said] == [logging.WARNING, logging.DEBUG, logging.DEBUG]


@pytest.mark.parametrize("limit_s", [3.0, 2.9])
async def test_it_is_asked_again_until_max_wait_s_is_over(limit_s: float) -> None:
    world = World()
    tries: list[float] = []

    async def ask() -> None:
        tries.append(world.now_s)
        raise SILENT

    policy = RecoveryPolicy(backoff_s=1.0, backoff_jitter=0.0, max_wait_s=limit_s)
    with pytest.raises(StatusUnavailable):
        await until_read(ask, policy, world.clock)
    assert tries == [1000.0, 1001.0, 1003.0] + [1007.0] * (limit_s == 3.0)


async def test_what_the_service_refuses_is_not_asked_again() -> None:
    world = World(attempt("a"))
    world.errors = [GONE]
    with pytest.raises(StatusRefused):
        await world.snapshot()
    assert world.slept == []


# -- sessions that a dead process has left --------------------------------------------------------


async def test_each_session_that_a_dead_process_has_left_is_ended_once() -> None:
    world = World()
    await finish_sessions(world.reader, ["s1:train:0", "s1:train:1", "s2:train:0"])
    assert [(verb, where) for verb, where, _ in world.sent] == [
        ("POST", "sessions/s1/finish"),
        ("POST", "sessions/s2/finish"),
    ]
    body = cast("Any", world.sent[0][2])
    assert body["reason"] == {"type": "interrupted"}
    assert "another goes on" in body["detail"]


@pytest.mark.parametrize(
    ("said", "is_said"), [(200, False), (404, True), (StatusRefused("no key"), False)]
)
async def test_that_a_service_cannot_end_sessions_is_said_and_no_error(
    said: int | Exception, *, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    world.said = said
    world.reader.http.endpoint.base_url = f"http://{said!r}.of.this.test"
    await finish_session(world.reader, "s1:train:0", "success", "done")
    assert len(world.sent) == 1
    assert ("sessions stay open" in caplog.text) == is_said
