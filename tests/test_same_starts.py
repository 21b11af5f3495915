"""Whether a start is that of the run of its name: what is refused, and by which argument."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tinker_recovery import UsageError
from tinker_recovery.errors import JournalError, RunFinished
from tinker_recovery.journal import StoredRun
from tinker_recovery.run import same_start
from tinker_recovery.run.options import StartPlan, plan_start
from tinker_recovery.run.same_start import (
    check_not_finished,
    check_same_as_recorded,
    check_same_start,
    refuse_early,
    with_its_seed,
)

MARK = "TINKER_RECOVERY_FINISHED_FILE"


def plan(**given: Any) -> StartPlan:
    return plan_start(cast("Any", {"base_model": "m", **given}), restore_optimizer=True)


def stored(**facts: Any) -> StoredRun:
    known = StoredRun(
        "one", {**plan(seed=3).described}, "lost", "", 2, 7, (cast("Any", "an attempt"),), (), ()
    )
    return replace(known, **facts)


@pytest.mark.parametrize(
    ("recorded", "given", "said"),
    [
        ({"rank": 8}, {"rank": 8}, None),
        ({"rank": 8}, {"rank": 16}, "rank=16 is not how run 'r' was begun, which is rank=8: "),
        ({"rank": 8}, {}, "rank=None is not how run 'r' was begun, which is rank=8: "),
        ({}, {"rank": 8}, "rank=8 is not how run 'r' was begun, which is rank=None: "),
        ({}, {"updates_per_step": 1}, None),
        ({"updates_per_step": 1}, {}, None),
        ({"updates_per_step": 2}, {}, "updates_per_step=1 is not .* is updates_per_step=2: "),
        ({}, {"updates_per_step": 2}, "updates_per_step=2 is not .* is updates_per_step=1: "),
        ({"start": "<lambda>"}, {"start": "train.<lambda>"}, None),
        (
            {"way": "start", "base_model": "m", "zz": 1},
            {"way": "adopt", "aa": 1},
            "a start by adopt= is not how run 'r' was begun, which is start=: ",
        ),
        ({"way": "a", "seed": 1, "rank": 1}, {"way": "a", "seed": 2, "rank": 2}, "^rank=2 is not"),
    ],
)
def test_the_first_argument_that_is_another_is_named_with_both_values_and_the_way_before_all(
    recorded: dict[str, Any], given: dict[str, Any], said: str | None
) -> None:
    if said is None:
        check_same_start("r", recorded, given)
        return
    with pytest.raises(UsageError, match=said) as raised:
        check_same_start("r", recorded, given)
    assert "forget that run (tinker-recovery abandon r)" in str(raised.value)


def test_a_run_is_compared_with_its_record_and_a_step_that_is_not_given_is_its_own() -> None:
    for given in ({}, {"start_step": 2}):
        check_same_as_recorded("r", stored(), plan(seed=3, **given))
    with pytest.raises(UsageError, match=r"start_step=0 is not .* which is start_step=2"):
        check_same_as_recorded("r", stored(), plan(seed=3, start_step=0))


def test_a_seed_that_was_drawn_gives_way_to_that_of_the_run_and_a_given_one_does_not() -> None:
    drawn = plan()
    assert with_its_seed(drawn, stored()).described["seed"] == 3
    assert with_its_seed(drawn, stored(origin={})) is drawn
    given = plan(seed=4)
    assert with_its_seed(given, stored()) is given


@pytest.mark.parametrize("state", ["lost", "training", "stopped", "failed"])
def test_a_run_that_has_not_come_to_its_end_may_go_on(state: str) -> None:
    check_not_finished("r", stored(state=state))


@pytest.mark.parametrize(
    ("checkpoints", "newest", "words"),
    [
        ((), None, "newest checkpoint is none: it saved nothing. To train on"),
        ((("p", 3), ("q", 7)), "q", "newest checkpoint is q. To train on"),
    ],
)
@pytest.mark.parametrize("or_else", ["", "do this"])
def test_a_finished_run_is_refused_with_its_newest_checkpoint_and_what_can_be_done(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    checkpoints: Any,
    newest: str | None,
    words: str,
    or_else: str,
) -> None:
    monkeypatch.delenv(MARK, raising=False)
    monkeypatch.chdir(tmp_path)
    finished = stored(state="finished", checkpoints=checkpoints)
    with pytest.raises(RunFinished) as raised:
        check_not_finished("r", finished, or_else=or_else)
    assert words in str(raised.value)
    way = or_else or "forget this run (tinker-recovery abandon r)"
    assert str(raised.value).endswith(f"choose another name, or {way}")
    assert (raised.value.run, raised.value.checkpoint, raised.value.step) == ("r", newest, 7)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False])
def test_the_runner_learns_that_it_was_no_crash_where_that_can_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, there: bool
) -> None:
    mark = tmp_path / "mark" if there else tmp_path / "no folder" / "mark"
    monkeypatch.setenv(MARK, str(mark))
    with pytest.raises(RunFinished):
        check_not_finished("r", stored(state="finished"))
    assert mark.exists() == there


# -- before the run is free ----------------------------------------------------------------------


class Reads:
    """A journal, and how often a run was read from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
        self.times = 0
        self.file: Path | None = Path("journal")
        self.error: Exception | None = None
        view = {"named": True, "state": "lost", **facts}
        self.view: Any = SimpleNamespace(**view)
        self.attempts: Any = ("an attempt",)
        monkeypatch.setattr(same_start, "read_stored_run", self._read)

    def _read(self, path: Path, name: str, *, service: str) -> Any:
        assert (path, name, service) == (Path("journal"), "r", "http://here")
        self.times += 1
        if self.error is not None:
            raise self.error
        return self.view and (self.view, stored(attempts=self.attempts))

    async def refuses(self, given: StartPlan) -> bool:
        recorder: Any = SimpleNamespace(path=self.file, service="http://here")
        try:
            await refuse_early(recorder, given, "r")
        except UsageError:
            return True
        return False


OTHER = {"seed": 3, "rank": 9}


@pytest.mark.parametrize(
    ("facts", "given", "refused"),
    [
        ({}, OTHER, True),
        ({}, {"seed": 3}, False),
        ({}, {}, False),
        ({"named": False}, OTHER, False),
        ({"state": "abandoned"}, OTHER, False),
        ({"state": "abandoned"}, OTHER | {"extend": True}, False),
        ({"state": "finished"}, OTHER, False),
        ({"state": "finished"}, OTHER | {"extend": True}, True),
        ({"state": "training"}, OTHER | {"extend": True}, True),
    ],
)
async def test_other_arguments_are_refused_before_the_run_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], given: dict[str, Any], *, refused: bool
) -> None:
    """A finished run is refused as that, whatever it is started with, once it is taken."""
    reads = Reads(monkeypatch, **facts)
    assert await reads.refuses(plan(name="r", **given)) == refused
    assert reads.times == 1


async def test_what_the_journal_does_not_say_is_left_for_when_the_run_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other, chosen = plan(name="r", **OTHER), plan(name="r", lineage="one", **OTHER)
    reads = Reads(monkeypatch)
    assert not await reads.refuses(chosen)
    reads.file = None
    assert not await reads.refuses(other)
    assert reads.times == 0
    reads = Reads(monkeypatch)
    reads.attempts = ()
    assert not await reads.refuses(other)
    reads.view = None
    assert not await reads.refuses(other)
    reads.error = JournalError("damaged")
    assert not await reads.refuses(other)
    assert reads.times == 3
