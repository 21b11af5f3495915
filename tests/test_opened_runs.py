"""How a run is taken and opened: what is asked and written, with a journal and a service made up.

The decisions alone; what they come to with real ones is in tests/lifecycle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from made import record as checkpoint

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, UsageError
from tinker_recovery.clock import Clock
from tinker_recovery.errors import (
    DeadlineExceeded,
    RunFinished,
    RunHeld,
    StatusRefused,
    StatusUnavailable,
)
from tinker_recovery.journal import HeldLease, RunRecord, StoredAttempt, StoredRun
from tinker_recovery.journal.holder import Holder
from tinker_recovery.recovery.discovery import NEW, QUIET_S, FoundRun
from tinker_recovery.run import open as open_
from tinker_recovery.run.open import OpenedRun, open_run
from tinker_recovery.run.options import StartPlan, plan_start
from tinker_recovery.service.guard import Guard

HERE, LINEAGE = "http://here", "abcdef"
MODEL: dict[str, Any] = {"base_model": "m", "seed": 3}
PARENT = "tinker://p/weights/c"


def plan(**given: Any) -> StartPlan:
    start = given if {"from_checkpoint", "start"} & given.keys() else MODEL | given
    return plan_start(cast("Any", start), restore_optimizer=True)


def stored(*run_ids: str, **facts: Any) -> StoredRun:
    """A run of earlier processes, with an attempt in each of these Tinker runs."""
    attempts = tuple(
        StoredAttempt(
            f"of {run_id}", run_id, 0, None, ended=True, sound_step=0, polled_step=0,
            trusted_to=None, faulty=False,
        )
        for run_id in run_ids
    )  # fmt: skip
    known = StoredRun(LINEAGE, {**plan().described}, "lost", "", 2, 7, attempts, (), ())
    return replace(known, **facts)


class Record(RunRecord):
    """The journal's record of a run; what is written to it goes to the log."""

    def __init__(self, log: list[Any], name: str, known: StoredRun | None) -> None:
        self.name, self.stored = name, known
        self.log = log
        self.elsewhere: Any = ()

    async def known_lineages(self) -> set[str]:
        return {"known"}

    async def rebuild(self, stored: StoredRun, *, known: int = 0) -> None:
        self.log.append(("rebuilt", stored, known))
        self.stored = stored

    async def begin(self, request: Any, *, anew: bool) -> None:
        self.log.append(("begun", request.start_step, anew))

    async def end(self, state: str | None, detail: str = "") -> None:
        self.log.append(("ended", state, detail))

    async def submit(self, job: Callable[[Any], Any]) -> Any:
        assert callable(job)
        return self.elsewhere


class OwnGuard(Guard):
    """A claim that says when it is given free."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        self._log = log

    async def release(self) -> None:
        self._log.append("released")


class World:
    """A journal and a service, and what is asked of them."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, known: StoredRun | None = None, **facts: Any
    ) -> None:
        self.log: list[Any] = []
        self.asked: list[tuple[Any, ...]] = []
        self.record = Record(self.log, "r", known)
        self.persistent = facts.get("persistent", True)
        self.path: Path | None = None
        self.held: list[HeldLease] = []
        self.orderly = facts.get("orderly", True)
        self.at_service: list[FoundRun | Exception | None] = [None]
        self.further: list[StoredRun | Exception] = []
        self.busy: list[bool | Exception] = []
        """Whether the run found last had to be waited for."""
        self.refused: Exception | None = None
        self.robs = False
        for name in ("refuse_early", "find_at_service", "find_further", "until_quiet"):
            monkeypatch.setattr(open_, name, getattr(self, f"_{name}"))
        for name in ("snapshot_of", "find_checkpoint"):
            monkeypatch.setattr(open_, name, getattr(self, f"_{name}"))

    # What it calls

    async def _refuse_early(self, recorder: object, of: StartPlan, name: str) -> None:
        assert recorder is self.recorder
        self.asked.append(("early", name, of.name))
        if self.refused is not None:
            raise self.refused

    async def enter(self, name: str, *, on_held: str, job: str | None) -> Guard:
        self.asked.append(("claim", name, on_held, job))
        return OwnGuard(self.log)

    def robs_journal(self, guard: Guard) -> bool:
        self.asked.append(("robs", isinstance(guard, OwnGuard)))
        return self.robs

    async def _take(self, request: Any, seen: HeldLease | None, *, rob: bool) -> Any:
        self.request = request
        self.asked.append(("take", seen, rob))
        return self.held.pop(0) if self.held else self.record

    async def _find_at_service(self, _: object, name: str, *, known: Any, lineage: Any) -> Any:
        self.asked.append(("at the service", name, known, lineage))
        found = self.at_service.pop(0) if self.at_service else None
        if isinstance(found, Exception):
            raise found
        return found

    async def _find_further(self, _: object, of: StoredRun, name: str) -> StoredRun:
        assert name == "r"
        self.asked.append(("further", [each.run_id for each in of.attempts]))
        found = self.further.pop(0) if self.further else of
        if isinstance(found, Exception):
            raise found
        return found

    async def _until_quiet(self, _: object, name: str, run_id: str, **how: Any) -> bool:
        self.asked.append(("quiet", name, run_id, how["quiet_s"], how["max_wait_s"]))
        busy = self.busy.pop(0) if self.busy else False
        if isinstance(busy, Exception):
            raise busy
        return busy

    async def _snapshot_of(self, name: str, found: StoredRun, *, parent: Any, **_: Any) -> Any:
        self.asked.append(("snapshot", name, len(found.attempts), parent))
        return SimpleNamespace(orderly=self.orderly, root="the root")

    async def _find_checkpoint(self, _: object, path: str) -> Any:
        self.asked.append(("checkpoint", path))
        return checkpoint(4)

    async def _sleep(self, seconds: float) -> None:
        self.log.append(("slept", seconds))

    # What is done with it

    @property
    def recorder(self) -> Any:
        self._recorder = getattr(self, "_recorder", None) or SimpleNamespace(
            service=HERE, persistent=self.persistent, path=self.path, open_run=self._take
        )
        return self._recorder

    async def open(self, of: StartPlan | None = None, **policy: Any) -> OpenedRun:
        opened = await open_run(
            self.recorder,
            cast("Any", "the reader"),
            of or plan(name="r"),
            "r",
            claiming=cast("Any", self),
            policy=RecoveryPolicy(**policy),
            clock=Clock(sleep=self._sleep),
        )
        assert opened.record is self.record
        return opened

    def whats(self) -> list[str]:
        """What was asked, in order."""
        return [each[0] for each in self.asked]


# -- a run that begins ---------------------------------------------------------------------------


async def test_a_named_run_is_looked_up_everywhere_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    opened = await world.open(plan(name="r", on_lease="refuse", job="j"))
    assert world.asked == [
        ("early", "r", "r"),
        ("claim", "r", "refuse", "j"),
        ("robs", True),
        ("take", None, False),
        ("at the service", "r", {"known"}, None),
    ]
    assert world.log == [], "it is held, and the journal has its beginning"
    assert (opened.root, opened.start_step, opened.snapshot) == (None, 0, None)
    assert isinstance(opened.guard, OwnGuard)
    assert opened.origin == {**MODEL, "way": "base_model", "start_step": 0}
    request = world.request
    assert (request.service, request.name, request.named) == (HERE, "r", True)
    assert (request.origin, request.start_step) == (opened.plan.described, 0)
    assert len(bytes.fromhex(request.lineage)) == 8


@pytest.mark.parametrize(
    ("of", "persistent", "enabled"),
    [(plan(), True, True), (plan(name="r"), False, True), (plan(name="r"), True, False)],
)
async def test_what_has_no_name_or_is_kept_nowhere_or_only_observed_is_begun_at_once(
    monkeypatch: pytest.MonkeyPatch, of: StartPlan, *, persistent: bool, enabled: bool
) -> None:
    world = World(monkeypatch, persistent=persistent)
    world.record.elsewhere = [elsewhere()]
    opened = await world.open(of, enabled=enabled)
    assert world.asked == [("robs", False), ("take", None, False)]
    assert not world.request.named
    assert world.log == []
    assert type(opened.guard) is Guard


async def test_the_lease_is_taken_from_whoever_has_it_where_the_claim_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.robs = True
    await world.open()
    assert ("take", None, True) in world.asked


async def test_the_journal_has_what_of_the_policy_says_how_a_run_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    await world.open(plan(name="r", job="j"))
    written = world.request.policy
    assert written["job"] == "j"
    assert written["prices"] is None
    policy = RecoveryPolicy()
    for name in ("enabled", "max_attempts", "poll_interval_s", "stall_after_s"):
        assert written[name] == getattr(policy, name)
    for name in ("restore_optimizer", "checkpoint_strategy"):
        assert written[name] == getattr(policy, name)
    assert written["strategy"] == policy.checkpoints.strategy
    assert written["ttl_s"] == policy.checkpoints.ttl_s
    checkpoints = CheckpointPolicy(strategy="steps", save_every=4)
    await world.open(plan(name="r"), prices={"m": {"trained": 2.0}}, checkpoints=checkpoints)
    written = world.request.policy
    assert written["prices"] == {"m": {"trained": 2.0}}
    assert written["save_every"] == 4
    assert "job" not in written


@pytest.mark.parametrize(
    ("given", "start_step", "root"),
    [
        ({}, 0, None),
        ({"start_step": 5}, 5, None),
        ({"from_checkpoint": PARENT}, 4, checkpoint(4)),
        ({"from_checkpoint": PARENT, "start_step": 5}, 5, None),
    ],
)
@pytest.mark.parametrize("known", [None, stored()])
async def test_a_run_begins_at_the_step_that_was_given_or_that_of_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    start_step: int,
    root: object,
    known: StoredRun | None,
) -> None:
    """One that the journal has may have been refused before it trained: it is begun anew."""
    world = World(monkeypatch, known)
    opened = await world.open(plan(name="r", **given))
    assert (opened.start_step, opened.root, opened.snapshot) == (start_step, root, None)
    assert opened.origin["start_step"] == start_step
    assert world.request.start_step == given.get("start_step", 0)
    assert (("checkpoint", PARENT) in world.asked) == (root is not None)
    written = root is not None or known is not None
    assert world.log == ([("begun", start_step, True)] if written else [])


def elsewhere(**facts: Any) -> Any:
    said = {
        "service": "http://there", "named": True, "state": "training", "step": 9,
        "display_state": "training",
    }  # fmt: skip
    return SimpleNamespace(**said | facts)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (None, False),
        ([], False),
        ([elsewhere()], True),
        ([elsewhere(named=False)], False),
        ([elsewhere(state="finished"), elsewhere(state="abandoned")], False),
        ([elsewhere(named=False, state="finished"), elsewhere(step=9)], True),
    ],
)
async def test_a_run_of_the_same_name_that_is_under_way_at_another_service_is_mentioned_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, others: Any, *, said: bool
) -> None:
    world = World(monkeypatch)
    world.record.elsewhere = others and [*others, *others]
    await world.open()
    line = f"run r exists at http://there, at step 9 (training); a new one begins here, at {HERE}"
    assert caplog.messages == ([line] if said else [])


# -- one that another process left ---------------------------------------------------------------


@pytest.mark.parametrize("orderly", [True, False])
async def test_a_run_of_this_journal_goes_on_where_it_was_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, orderly: bool
) -> None:
    world = World(monkeypatch, stored("a", "b"), orderly=orderly)
    opened = await world.open(plan(name="r", seed=None))
    assert world.asked[-2:] == [("further", ["a", "b"]), ("snapshot", "r", 2, None)]
    assert "at the service" not in world.whats()
    assert world.log == [("begun", 0, False)]
    at: Any = opened
    assert (at.root, at.start_step, at.snapshot.orderly) == ("the root", 2, orderly)
    assert opened.plan.described["seed"] == 3, "that of the run, as none was given"
    said = "run r: an earlier process left it lost at step 7; it is resumed here"
    assert caplog.messages == ([] if orderly else [said])


@pytest.mark.parametrize(("start_step", "parent"), [(None, PARENT), (2, None)])
async def test_the_checkpoint_it_was_started_from_counts_unless_a_step_was_given(
    monkeypatch: pytest.MonkeyPatch, start_step: int | None, parent: str | None
) -> None:
    given: dict[str, Any] = {"from_checkpoint": PARENT}
    if start_step is not None:
        given["start_step"] = start_step
    world = World(monkeypatch, stored("a", origin=plan(**given).described))
    await world.open(plan(name="r", **given))
    assert world.asked[-1] == ("snapshot", "r", 1, parent)


async def test_a_run_is_not_resumed_with_other_arguments_and_keeps_the_state_it_was_found_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, stored("a"))
    with pytest.raises(UsageError, match="rank=8 is not how run 'r' was begun"):
        await world.open(plan(name="r", rank=8))
    assert world.log == [("ended", None, ""), "released"]


@pytest.mark.parametrize("attempts", [("a",), ()])
async def test_a_finished_run_is_refused_before_the_service_is_asked_and_extended_if_that_is_said(
    monkeypatch: pytest.MonkeyPatch, attempts: tuple[str, ...]
) -> None:
    finished = stored(*attempts, state="finished", checkpoints=(("p", 7),))
    world = World(monkeypatch, finished)
    with pytest.raises(RunFinished, match="abandon r"):
        await world.open()
    assert world.log[-1] == "released"
    assert "further" not in world.whats()
    world = World(monkeypatch, finished)
    await world.open(plan(name="r", extend=True))
    assert world.log == [("begun", 0, not attempts)]


@pytest.mark.parametrize(
    ("known", "error", "said"),
    [
        (stored("a"), ValueError("no"), [("ended", None, "")]),
        (stored("a"), asyncio.CancelledError(), [("ended", None, "")]),
        (stored(), ValueError("no"), [("ended", "failed", "ValueError: no")]),
        (None, ValueError("no"), [("ended", "failed", "ValueError: no")]),
        (None, KeyboardInterrupt(), [("ended", "stopped", "stopped by Ctrl-C")]),
    ],
)
async def test_a_run_that_cannot_be_opened_is_given_free_with_what_it_was_refused_for(
    monkeypatch: pytest.MonkeyPatch, known: StoredRun | None, error: BaseException, said: Any
) -> None:
    world = World(monkeypatch, known)

    async def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("find_further", "find_at_service"):
        monkeypatch.setattr(open_, name, fail)
    with pytest.raises(type(error)):
        await world.open()
    assert world.log == [*said, "released"]


async def test_a_run_that_is_refused_at_once_is_neither_claimed_nor_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.refused = UsageError("other arguments")
    with pytest.raises(UsageError, match="other arguments"):
        await world.open()
    assert (world.whats(), world.log) == (["early"], [])


# -- the run that is chosen ----------------------------------------------------------------------


@pytest.mark.parametrize("lineage", ["ab", LINEAGE])
async def test_the_run_of_this_journal_may_be_named_by_the_beginning_of_its_lineage(
    monkeypatch: pytest.MonkeyPatch, lineage: str
) -> None:
    world = World(monkeypatch, stored("a"))
    assert (await world.open(plan(name="r", lineage=lineage))).start_step == 2


@pytest.mark.parametrize("known", [None, stored()])
async def test_a_run_that_has_not_trained_here_is_looked_for_by_the_lineage_that_was_chosen(
    monkeypatch: pytest.MonkeyPatch, known: StoredRun | None
) -> None:
    world = World(monkeypatch, known)
    await world.open(plan(name="r", lineage="zz"))
    assert world.asked[-1] == ("at the service", "r", {"known"}, "zz")


async def test_another_run_than_that_of_this_journal_cannot_be_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, stored("a"))
    with pytest.raises(UsageError, match=r"lineage='bcd' is not that of run 'r' .* is abcdef:"):
        await world.open(plan(name="r", lineage="bcd"))
    assert "further" not in world.whats()


async def test_a_new_run_is_begun_beside_what_the_service_has_and_a_known_one_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    assert (await world.open(plan(name="r", lineage=NEW))).snapshot is None
    assert "at the service" not in world.whats()
    world = World(monkeypatch, stored("a"))
    assert (await world.open(plan(name="r", lineage=NEW))).snapshot is not None


@pytest.mark.parametrize("lineage", ["ab", NEW])
async def test_where_nothing_is_resumed_no_run_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, lineage: str
) -> None:
    world = World(monkeypatch, persistent=False)
    if lineage == NEW:
        await world.open(plan(name="r", lineage=lineage))
        return
    with pytest.raises(UsageError, match="lineage='ab' chooses a run to resume, and none"):
        await world.open(plan(name="r", lineage=lineage))
    assert world.log[0][:2] == ("ended", "failed")


# -- one that only the service knows -------------------------------------------------------------


def found(*run_ids: str, **facts: Any) -> FoundRun:
    return FoundRun(stored(*run_ids, **facts), {"base_model": "m", "rank": 8, "more": 1})


@pytest.mark.parametrize("run_ids", [("a",), ("a", "b")])
async def test_a_run_that_only_the_service_has_is_written_here_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run_ids: tuple[str, ...]
) -> None:
    world = World(monkeypatch)
    there = found(*run_ids)
    world.at_service = [there]
    opened = await world.open(max_wait_s=77.0)
    assert world.asked[-2:] == [
        ("quiet", "r", run_ids[-1], QUIET_S, 77.0),
        ("snapshot", "r", len(run_ids), None),
    ]
    assert world.log == [("rebuilt", there.stored, 0), ("begun", 0, False)]
    assert opened.start_step == 2
    which = "2 attempts were" if len(run_ids) > 1 else "1 attempt was"
    (said,) = caplog.messages
    assert said == (
        f"run r is not in this journal, and has checkpoints at the service: {which} put together "
        "from what those say, the newest of them at step 7"
    )


async def test_what_was_trained_while_it_was_waited_for_is_found_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.at_service = [found("a"), found("a", "b"), found("a", "b")]
    world.busy = [True, True]
    await world.open()
    quiet = [each[2] for each in world.asked if each[0] == "quiet"]
    assert quiet == ["a", "b"], "of b it is known by now"
    assert world.log[0] == ("rebuilt", found("a", "b").stored, 0)


async def test_a_run_that_is_trained_elsewhere_for_too_long_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.at_service = [found("a")]
    world.busy = [DeadlineExceeded("waiting", 1.0)]
    with pytest.raises(DeadlineExceeded):
        await world.open()
    assert world.log == [("ended", "failed", world.log[0][2]), "released"]


async def test_a_finished_run_at_the_service_is_refused_with_the_way_to_begin_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.at_service = [found("a", state="finished")]
    with pytest.raises(RunFinished, match=r'or begin another run beside it \(lineage="new"\)'):
        await world.open()
    assert "quiet" not in world.whats()
    world = World(monkeypatch)
    world.at_service = [found("a", state="finished")]
    assert (await world.open(plan(name="r", extend=True))).snapshot is not None


async def test_a_run_at_the_service_is_asked_about_again_while_it_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.at_service = [StatusUnavailable("no answer"), None]
    await world.open()
    assert world.whats()[-2:] == ["at the service"] * 2
    assert len(world.log) == 1, "it was waited for in between"


@pytest.mark.parametrize(
    ("origin", "given", "refused"),
    [
        ({**plan().described}, {}, None),
        ({**plan().described}, {"rank": 16}, "rank=16"),
        ({**plan().described, "seed": 5}, {}, "seed=3 is not .* which is seed=5"),
        ({"way": "start", "start": "as it was called then"}, {"start": print}, None),
        ({}, {}, None),
        ({}, {"rank": 8}, None),
        ({}, {"rank": 16}, "rank=16 is not .* which is rank=8"),
        ({}, {"base_model": "n"}, "base_model='n'"),
    ],
)
async def test_a_run_at_the_service_is_taken_over_if_it_was_begun_alike_as_far_as_is_known(
    monkeypatch: pytest.MonkeyPatch,
    origin: dict[str, Any],
    given: dict[str, Any],
    refused: str | None,
) -> None:
    """Where its checkpoints do not say, the service says of which model and rank it is."""
    world = World(monkeypatch)
    world.at_service = [found("a", origin=origin)]
    of = plan(name="r", **given)
    if refused is not None:
        with pytest.raises(UsageError, match=refused):
            await world.open(of)
        assert "quiet" not in world.whats(), "it is not waited for"
        return
    await world.open(of)
    _, written, _ = world.log[0]
    assert written.origin == (origin or of.described)


# -- one that others have trained since ----------------------------------------------------------


async def test_what_processes_with_other_journals_have_trained_since_is_added(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, stored("a"))
    whole = stored("a", "b", "c", step=9)
    world.further = [stored("a", "b"), whole, whole]
    world.busy = [True, True]
    await world.open(max_wait_s=77.0)
    assert world.asked[3:] == [
        ("take", None, False),
        ("further", ["a"]),
        ("quiet", "r", "b", QUIET_S, 77.0),
        ("further", ["a"]),
        ("quiet", "r", "c", QUIET_S, 77.0),
        ("further", ["a"]),
        ("snapshot", "r", 3, None),
    ]
    assert world.log == [("rebuilt", whole, 1), ("begun", 0, False)]
    (said,) = caplog.messages
    assert said == (
        "run r was trained on by a process with another journal: 2 attempts that this one lacks, "
        "the newest of them at step 9"
    )


async def test_what_is_idle_is_not_waited_for_a_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, stored("a"))
    world.further = [stored("a", "b"), stored("a", "b", "c")]
    await world.open()
    assert world.whats().count("further") == world.whats().count("quiet") == 1
    assert world.log[0] == ("rebuilt", stored("a", "b"), 1)


async def test_a_run_that_another_process_has_finished_since_is_refused_unless_it_is_extended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for whole in (stored("a", state="finished"), stored("a", "b", state="finished")):
        world = World(monkeypatch, stored("a"))
        world.further = [whole]
        with pytest.raises(RunFinished):
            await world.open()
        assert "quiet" not in world.whats()
        world = World(monkeypatch, stored("a"))
        world.further = [whole]
        assert (await world.open(plan(name="r", extend=True))).snapshot is not None


async def test_where_the_service_refuses_the_list_the_journal_is_believed_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, stored("a"))
    world.further = [StatusRefused("HTTP 403", status_code=403)]
    assert (await world.open()).start_step == 2
    assert "run r: it cannot be seen whether a process with another journal" in caplog.text
    assert world.log == [("begun", 0, False)]


# -- one that is held ----------------------------------------------------------------------------


def held(pid: int = 12) -> HeldLease:
    return HeldLease(Holder("there", "", pid, "", 0.0, 60.0), 1, 0, 0.0)


async def test_a_run_that_another_process_trains_is_refused_with_who_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.held = [held()]
    with pytest.raises(RunHeld, match="run 'r' is being trained by process 12 on there") as raised:
        await world.open(plan(name="r", on_lease="refuse"))
    assert (raised.value.run, raised.value.pid) == ("r", 12)
    assert world.log == ["released"]


async def test_who_waits_for_a_run_says_so_now_and_then_and_looks_twice_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world, slept = World(monkeypatch), list[float]()
    world.held = [held(1), held(2), held(3), held(4), held(5)]
    now = iter([100.0, 100.0, 159.9, 160.0, 160.0, 219.0, 221.0, 221.0])

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(open_, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(open_, "anyio", SimpleNamespace(sleep=sleep))
    with caplog.at_level(logging.INFO):
        await world.open()
    said = [message.partition(" on there")[0] for message in caplog.messages]
    assert said == [
        *(f"run r is being trained by process {pid}" for pid in (1, 3, 5)),
        "run r: it is free now, and is resumed here",
    ]
    assert "look on there: tinker-recovery watch r; end it there by Ctrl-C" in caplog.messages[0]
    assert slept == [0.5] * 5
    seen = [each[1] for each in world.asked if each[0] == "take"]
    assert seen == [None, held(1), held(2), held(3), held(4), held(5)]


async def test_a_wait_for_a_run_can_be_cancelled_and_gives_the_claim_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.held = [held()] * 1000
    with anyio.move_on_after(0) as scope:
        await world.open()
    assert scope.cancelled_caught
    assert world.log == ["released"]
