"""What is known of a run's checkpoints: how far they are trusted, where they are stored."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inspection import know_canaries
from made import path, record, segment
from pydantic import SecretStr

from tinker_recovery import RecoveryEvent, RecoveryPolicy
from tinker_recovery.checkpoints import CheckpointRecord, Deletion
from tinker_recovery.checkpoints.canary import Match, fingerprint_of
from tinker_recovery.checkpoints.deletion import SETTLE_S
from tinker_recovery.checkpoints.prompt import PromptFacts, digest_of, prompt_of
from tinker_recovery.clock import Clock
from tinker_recovery.errors import JournalError
from tinker_recovery.journal import Journal, Notebook, Notes
from tinker_recovery.recovery.checkpoint_state import LOADS_TRIED, CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators, nothing_in_background
from tinker_recovery.service import Endpoint, StatusReader, TinkerBackend
from tinker_recovery.telemetry import EventSink, names

STEPS = st.integers(0, 9).map(float) | st.just(math.inf)
PROMPT = prompt_of([1, 2, 3])
ABOUT = digest_of(PROMPT)
ANSWER = (-1.0, -2.0)
OTHER = (-1.0, -3.0)


@given(limits=st.lists(STEPS), doubtful=STEPS)
def test_an_attempt_is_trusted_up_to_the_lowest_of_all_that_was_said_of_it(
    limits: list[float], doubtful: float
) -> None:
    known = CheckpointState("run")
    known.watch(lambda attempt: doubtful if attempt == "a" else math.inf, lambda _: math.inf, set)
    for limit in limits:
        known.distrust("a", limit)
    assert known.trusted_to("a") == min([*limits, doubtful])
    assert known.trusted_to("b") == math.inf, "nothing was said of another attempt"


def test_a_run_is_asked_for_both_limits_of_its_own_attempts() -> None:
    known = CheckpointState("run")
    assert (known.first_doubtful_step("a"), known.confirmed_to("a")) == (math.inf, math.inf)
    known.watch({"a": 3.0}.__getitem__, {"a": 1.0}.__getitem__, lambda: {path("a", 4)})
    assert (known.first_doubtful_step("a"), known.confirmed_to("a")) == (3.0, 1.0)
    assert known.unsettled() == {path("a", 4)}


def _stored() -> CheckpointState:
    known = CheckpointState("run")
    known.stored = {
        path("a", 2): ("a", 2),
        path("b", 3): ("b", 3),
        path("a", 4): ("a", 4),
        path("a", 6): ("a", 6),
    }
    return known


@pytest.mark.parametrize(
    ("limit", "steps"), [(1.9, []), (2, [2]), (5, [2, 4]), (6, [2, 4, 6]), (math.inf, [2, 4, 6])]
)
def test_what_is_stored_on_a_segment_is_its_own_up_to_the_limit_and_not_rejected(
    limit: float, steps: list[int]
) -> None:
    known = _stored()
    assert known.stored_on(segment("a"), limit) == [path("a", step) for step in steps]
    known.bad[path("a", 4)] = "does not load"
    assert path("a", 4) not in known.stored_on(segment("a"), limit)
    assert known.stored_on(segment("b"), math.inf) == [path("b", 3)]


def test_the_path_of_a_save_is_that_of_its_attempt_and_its_step() -> None:
    known = _stored()
    assert known.path_of("a", 4) == path("a", 4)
    assert known.path_of("b", 3) == path("b", 3)
    assert known.path_of("a", 3) is None
    assert known.path_of("b", 4) is None


def _scheduled(run: str, step: int) -> str:
    return f"tinker://{run}/weights/step-{step:08d}"


BRANCH = [segment("a"), segment("b", 4, _scheduled("a", 4)), segment("c", 6, _scheduled("b", 6))]
"""Of each attempt two steps more than the next one went back to are stored."""

STORED = {
    _scheduled(run, step): (run, step)
    for run, steps in {"a": (2, 4, 6), "b": (4, 6, 8), "c": (8, 10), "gone": (3, 99)}.items()
    for step in steps
}


@given(
    limits=st.dictionaries(st.sampled_from("abc"), STEPS),
    confirmed=STEPS,
    left_out=st.sets(st.sampled_from(sorted(STORED))),
)
def test_what_is_expected_and_relied_on_lies_on_the_branch_within_what_is_trusted(
    limits: dict[str, float], confirmed: float, left_out: set[str]
) -> None:
    unsettled, bad = set(sorted(left_out)[::2]), set(sorted(left_out)[1::2])
    known = CheckpointState("run")
    known.stored = dict(STORED)
    known.bad = dict.fromkeys(bad, "does not load")
    known.watch(
        lambda _: math.inf, lambda each: confirmed if each == "c" else math.inf, lambda: unsettled
    )
    for attempt, limit in limits.items():
        known.distrust(attempt, limit)

    def usable(above: dict[str, float], without: set[str]) -> dict[str, int]:
        last = {"a": 4.0, "b": 6.0, "c": math.inf}
        return {
            each: step
            for each, (attempt, step) in STORED.items()
            if each not in without
            and attempt in last
            and step <= min(last[attempt], limits.get(attempt, math.inf), above.get(attempt, 99))
        }

    trusted = usable({}, left_out)
    newest = known.newest_trusted(BRANCH)
    assert (newest is None) == (not trusted)
    assert newest is None or trusted[newest] == max(trusted.values())
    settled: dict[int, list[str]] = {}
    for each, step in usable({"c": confirmed}, bad).items():
        settled.setdefault(step, []).append(each)
    assert known.settled_on(BRANCH) == settled


def test_a_newest_one_that_the_user_may_write_again_is_not_expected_to_be_chosen() -> None:
    known = CheckpointState("run")
    known.stored = {_scheduled("a", 2): ("a", 2), path("a", 4): ("a", 4)}
    assert known.newest_trusted([segment("a")]) is None
    known.bad = {path("a", 4): "does not load"}
    assert known.newest_trusted([segment("a")]) == _scheduled("a", 2)


def test_the_noise_of_answers_to_another_prompt_says_nothing_of_this_ones() -> None:
    known = CheckpointState("run", canary=PROMPT)
    other = digest_of(prompt_of([4, 5]))
    known.learn_canaries([record(1).model_copy(update={"canary_prompt": PromptFacts(other, 0.5)})])
    assert (known.canaries.noise, known.canaries.measured) == (0.0, False)
    known.learn_canaries([record(1).model_copy(update={"canary_prompt": PromptFacts(ABOUT, 0.5)})])
    assert (known.canaries.noise, known.canaries.measured) == (0.5, True)


def _with_canary(step: int, canary: str | None) -> CheckpointRecord:
    about = PromptFacts(ABOUT, 0.0)
    return record(step).model_copy(update={"canary": canary, "canary_about": about})


def test_canaries_are_learned_from_the_listing_and_else_from_the_journal() -> None:
    known = CheckpointState("run", canary=PROMPT)
    own, noted = fingerprint_of(ANSWER), fingerprint_of(OTHER)
    assert own is not None
    assert noted is not None
    journal = {path("a", step): noted for step in (1, 2, 4)}
    know_canaries(known, journal, prompt=ABOUT)
    known.learn_canaries([_with_canary(1, own), _with_canary(2, None), _with_canary(3, None)])
    assert known.compare_canary(record(1), [ANSWER])[0] is Match.SAME
    assert known.compare_canary(record(1), [OTHER])[0] is Match.DIFFERENT
    assert known.compare_canary(record(2), [OTHER])[0] is Match.SAME
    assert known.compare_canary(record(2), [ANSWER])[0] is Match.DIFFERENT
    assert not known.expects(record(3)), "nobody has asked it there"
    assert not known.expects(record(4)), "it is not listed"


def test_where_the_run_began_is_known_by_its_first_answer_and_not_by_that_of_a_save() -> None:
    known = CheckpointState("run")
    assert not known.expects(None)
    assert known.compare_canary(None, [ANSWER])[0] is Match.UNCLEAR
    known.note_canary("mine", 0, ANSWER)
    known.note_canary("a", 5, OTHER)
    known.began = None, "mine", 0
    assert known.expects(None)
    assert known.compare_canary(None, [ANSWER])[0] is Match.SAME
    assert known.compare_canary(None, [OTHER])[0] is Match.DIFFERENT
    assert known.compare_canary(record(5), [OTHER])[0] is Match.SAME
    known.began = path("a", 5), "mine", 0
    assert known.compare_canary(record(5), [ANSWER])[0] is Match.SAME, "it began with this one"
    assert known.compare_canary(record(5), [OTHER])[0] is Match.DIFFERENT


def test_an_answer_that_is_no_number_is_not_noted() -> None:
    known = CheckpointState("run")
    assert known.note_canary("a", 5, (math.nan,)) is None
    assert not known.expects(record(5))
    assert not known.fingerprints
    assert known.note_canary("a", 5, ANSWER) == fingerprint_of(ANSWER)
    assert known.fingerprints == {("a", 5): fingerprint_of(ANSWER)}


def test_an_answer_that_is_no_number_rejects_a_checkpoint_from_the_second_time_on() -> None:
    known = CheckpointState("run")
    assert known.rejects(record(5), [(math.nan,)]) is False
    assert not known.rejects(record(6), [(math.nan,)]), "each is counted for itself"
    assert known.rejects(record(5), [(math.nan,)])
    assert known.rejects(record(7), [OTHER]), "a number that is wrong rejects at once"
    assert known.rejects(record(8), [(math.nan,), OTHER])


def test_what_fails_to_load_twice_is_passed_over_until_the_incident_is_over() -> None:
    known = CheckpointState("run")
    assert LOADS_TRIED == 2
    assert not known.note_load_failed(path("a", 5), "once")
    assert not known.note_load_failed(path("a", 6), "once")
    assert known.unusable == {}
    assert known.note_load_failed(path("a", 5), "twice")
    assert known.unusable == {path("a", 5): "twice"}
    known.note_recovered()
    assert known.unusable == {}
    assert not known.note_load_failed(path("a", 5), "again"), "counted afresh"


def test_what_must_not_be_relied_on_is_rejected_skipped_or_being_deleted() -> None:
    known = CheckpointState("run")
    known.skipped = {path("a", 1): "skipped", path("a", 3): "skipped"}
    known.being_deleted = {path("a", 2): "deleted"}
    known.bad = {path("a", 3): "bad"}
    assert known.unusable == {
        path("a", 1): "skipped",
        path("a", 2): "deleted",
        path("a", 3): "bad",
    }


# -- what the journal has noted ------------------------------------------------------------------

NOW_S = 1e9
URL = "http://127.0.0.1:1"


class Beside:
    """What was emitted, and what was to run in the background."""

    def __init__(self) -> None:
        self.events: list[RecoveryEvent] = []
        self.tasks: list[Callable[[], Coroutine[object, object, None]]] = []

    async def run(self) -> int:
        """Run what is waiting; returns how much that was."""
        tasks = self.tasks.copy()
        self.tasks.clear()
        for task in tasks:
            await task()
        return len(tasks)


@asynccontextmanager
async def _journal(folder: Path, beside: Beside | None = None) -> AsyncIterator[Collaborators]:
    beside = beside or Beside()
    async with (
        StatusReader(Endpoint(URL, SecretStr("tml-x"))) as reader,
        Notebook(Journal(folder / "journal.db", service=URL)) as notebook,
    ):
        yield Collaborators(
            RecoveryPolicy(),
            TinkerBackend(),
            reader,
            notebook,
            EventSink(beside.events.append),
            Clock(wall=lambda: NOW_S),
            beside.tasks.append,
        )


def _deletion(step: int, at_s: float = NOW_S, *, sent: bool = True, over: bool = False) -> Deletion:
    state = "deleted" if over else "deleting"
    return Deletion(path("a", step), state, "no rule keeps it", at_s, sent=sent)  # type: ignore[arg-type]  # one of its states


async def test_what_any_process_has_noted_of_a_checkpoint_is_taken_over(tmp_path: Path) -> None:
    said = fingerprint_of(ANSWER)
    assert said is not None
    lines = [
        _deletion(5),
        _deletion(6, sent=False),
        _deletion(7, NOW_S - SETTLE_S, over=True),
        _deletion(8, NOW_S - SETTLE_S + 1, over=True),
    ]
    async with _journal(tmp_path) as collaborators:
        await collaborators.notebook.mark_bad(path("a", 1), "zero tail")
        await collaborators.notebook.note_sizes({path("a", 2): 77})
        await collaborators.notebook.note_canary(path("a", 3), said)
        for line in lines:
            await collaborators.notebook.write_deletion(line.path, line.to_line())
    for refreshed in (False, True):
        known = CheckpointState("run")
        known.being_deleted = {path("a", 9): "as it was before"}
        async with _journal(tmp_path) as collaborators:
            await (known.refresh if refreshed else known.read)(collaborators)
        assert known.bad == {path("a", 1): "zero tail"}
        assert known.sizes == {path("a", 2): 77}
        assert known.noted_canaries == {path("a", 3): said}
        assert set(known.being_deleted) == {path("a", 5), path("a", 8)}, "only what may go yet"


def test_a_deletion_counts_from_the_request_until_it_is_settled() -> None:
    known = CheckpointState("run")
    known.note_deletion(_deletion(5, sent=False), now_s=NOW_S)
    assert known.unusable == {}
    known.note_deletion(_deletion(5), now_s=NOW_S)
    assert list(known.unusable) == [path("a", 5)]
    known.note_deletion(_deletion(5, over=True), now_s=NOW_S + SETTLE_S - 1)
    assert list(known.unusable) == [path("a", 5)]
    known.note_deletion(_deletion(5, over=True), now_s=NOW_S + SETTLE_S)
    assert known.unusable == {}


def test_what_the_canary_answers_is_known_as_long_as_one_checkpoint_of_the_weights_is_left() -> (
    None
):
    """The schedule and the user may each have saved the same step."""
    known, at = CheckpointState("run"), ("a", 5)
    known.stored = {path("a", 5): at, _scheduled("a", 5): at, path("a", 6): ("a", 6)}
    known.note_canary(*at, ANSWER)
    known.note_canary("a", 6, OTHER)
    known.note_deletion(_deletion(5, sent=False), now_s=NOW_S)
    known.note_deletion(_deletion(5), now_s=NOW_S)
    assert known.stored[path("a", 5)] == at, "it may be there yet"
    known.note_deletion(_deletion(5, over=True), now_s=NOW_S)
    assert path("a", 5) not in known.stored
    assert known.compare_canary(record(5), [OTHER])[0] is Match.DIFFERENT
    assert known.fingerprints.keys() == {at, ("a", 6)}
    other = replace(_deletion(5, over=True), path=_scheduled("a", 5))
    known.note_deletion(other, now_s=NOW_S)
    assert not known.expects(record(5))
    assert known.expects(record(6))
    assert known.fingerprints.keys() == {("a", 6)}
    assert known.stored == {path("a", 6): ("a", 6)}
    known.note_deletion(other, now_s=NOW_S)  # a second time: there is nothing of it


async def test_a_rejected_checkpoint_is_never_used_again_and_everybody_is_informed(
    tmp_path: Path,
) -> None:
    known, beside = CheckpointState("run"), Beside()
    async with _journal(tmp_path, beside) as collaborators:
        await known.reject(path("a", 5), "zero tail", collaborators)
    assert known.bad == {path("a", 5): "zero tail"}
    (event,) = beside.events
    assert (event.name, event.run) == (names.EVENT_CHECKPOINT_BAD, "run")
    assert event.fields[names.CHECKPOINT_PATH] == path("a", 5)
    later = CheckpointState("run")
    async with _journal(tmp_path) as collaborators:
        await later.read(collaborators)
    assert later.bad == known.bad


async def test_a_canarys_answer_is_noted_once_it_and_the_path_are_both_known(
    tmp_path: Path,
) -> None:
    known, beside = CheckpointState("run"), Beside()
    async with _journal(tmp_path, beside) as collaborators:
        known.write_canary("a", 5, collaborators)
        known.note_canary("a", 5, ANSWER)
        known.write_canary("a", 5, collaborators)
        assert await beside.run() == 0, "where it was stored is not known yet"
        known.stored[path("a", 6)] = "a", 6
        known.write_canary("a", 6, collaborators)
        assert await beside.run() == 0, "what it answered is not known yet"
        known.stored[path("a", 5)] = "a", 5
        known.write_canary("a", 5, collaborators)
        assert await beside.run() == 1
        notes = await collaborators.notebook.notes()
    assert notes.canaries == {path("a", 5): fingerprint_of(ANSWER)}


async def test_what_is_known_of_the_prompt_is_noted_once_and_again_when_it_has_changed(
    tmp_path: Path,
) -> None:
    beside, known = Beside(), CheckpointState("run", lineage="mine", canary=PROMPT)
    nothing = CheckpointState("run", lineage="mine")
    async with _journal(tmp_path, beside) as collaborators:
        nothing.write_prompt(collaborators)
        assert beside.tasks == [], "there is no prompt"
        known.write_prompt(collaborators)
        known.write_prompt(collaborators)
        assert await beside.run() == 1
        known.canaries.know_noise(0.25)
        known.write_prompt(collaborators)
        assert await beside.run() == 1
        notes = await collaborators.notebook.notes()
    assert PromptFacts.parse(notes.prompts["mine"]) == PromptFacts(ABOUT, 0.25)


def test_outside_a_supervisor_nothing_is_started_in_the_background() -> None:
    async def task() -> None:
        raise AssertionError("it was started")

    with pytest.raises(RuntimeError, match="needs a Supervisor"):
        nothing_in_background(task)


async def test_a_journal_that_cannot_be_used_is_said_once_until_it_can_be_again(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    known, full = CheckpointState("run"), JournalError("the disk is full")
    said: list[int] = []

    async def refresh(error: JournalError | None) -> None:
        async def notes() -> Notes:
            if error is not None:
                raise error
            return await collaborators.notebook.notes()

        broken = replace(collaborators, notebook=cast("Any", SimpleNamespace(notes=notes)))
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            await known.refresh(broken)
        said.extend(each.levelno for each in caplog.records if "run run: " in each.getMessage())

    async with _journal(tmp_path) as collaborators:
        for error in (full, full, JournalError("another"), None, JournalError("another")):
            await refresh(error)
    assert said == [logging.ERROR, logging.DEBUG, logging.ERROR, logging.ERROR]


def test_a_note_counts_where_no_answer_to_this_prompt_is_listed_of_a_save_of_the_schedule() -> None:
    known = CheckpointState("run", canary=PROMPT)
    own, noted = fingerprint_of(ANSWER), fingerprint_of(OTHER)
    assert noted is not None
    know_canaries(known, {path("a", step): noted for step in (1, 2, 3)}, prompt=ABOUT)
    elsewhere = PromptFacts("another prompt", 0.0)
    of_another = {"canary": own, "canary_about": elsewhere}
    known.learn_canaries(
        [
            record(1).model_copy(update=of_another),
            record(2, saved_by="user"),
            record(3, saved_by="user").model_copy(update=of_another),
            record(4).model_copy(update=of_another),
        ]
    )
    assert known.compare_canary(record(1), [OTHER])[0] is Match.SAME
    assert known.compare_canary(record(1), [ANSWER])[0] is Match.DIFFERENT
    for step in (2, 3, 4):
        assert not known.expects(record(step)), "saved anew by the user, or asked otherwise"


def test_the_prompt_of_a_run_that_makes_its_own_is_that_of_its_newest_checkpoint() -> None:
    known = CheckpointState("run", canary="auto")
    assert known.prompt_facts() is None

    def asked(step: int, *tokens: int) -> CheckpointRecord:
        about = PromptFacts(digest_of(prompt_of(tokens)), 0.5, tokens)
        return record(step).model_copy(update={"canary": "x", "canary_prompt": about})

    known.learn_canaries([asked(1, 7, 8), asked(3, 1, 2, 3), asked(2, 8, 9)])
    facts = known.prompt_facts()
    assert facts is not None
    assert (facts.tokens, facts.noise) == ((1, 2, 3), 0.5)


def test_where_something_of_no_step_was_saved_there_is_no_checkpoint_any_more() -> None:
    known = CheckpointState("run")
    known.stored = {path("a", 1): ("a", 1), path("a", 2): ("a", 2)}
    known.note_replaced(path("a", 2))
    known.note_replaced(path("a", 3))
    assert (known.path_of("a", 2), known.path_of("a", 1)) == (None, path("a", 1))
