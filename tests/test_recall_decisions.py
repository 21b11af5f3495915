"""What ``attempt.recall`` gives back and what it has made again: with a run made up here."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from made import LINEAGE, record, segment

from tinker_recovery import UsageError
from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.errors import StaleAttempt
from tinker_recovery.journal.recalled import FOLDER, Kept
from tinker_recovery.journal.run_sql import StoredAttempt
from tinker_recovery.run.recall import AttemptRecall, RunRecall

KNOWN = record(5).model_copy(update={"trail": "what the weights were made of"})


def stored(attempt: str, *, sound: int) -> StoredAttempt:
    return StoredAttempt(
        attempt,
        attempt,
        0,
        None,
        ended=True,
        sound_step=sound,
        polled_step=0,
        trusted_to=None,
        faulty=False,
    )


class World:
    """A run, with what it keeps; each attempt of it is made by :meth:`attempt`."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        named: bool = True,
        limit: int = 1000,
        earlier: tuple[StoredAttempt, ...] | None = None,
        **policy: Any,
    ) -> None:
        self.trusted: dict[str, float] = {}
        self.settled: dict[int, list[str]] = {}
        self.here = {"a", "b"}
        self.written: list[str] = []
        opened: Any = SimpleNamespace(
            record=SimpleNamespace(
                given_name="mine" if named else None,
                path=None if folder is None else folder / "journal.db",
                lineage=LINEAGE,
                stored=None if earlier is None else SimpleNamespace(attempts=earlier),
            )
        )
        self.kept = RunRecall(opened, limit=limit)
        given = {"restore_optimizer": True, "checkpoint_strategy": "latest", "enabled": True}
        self.run: Any = SimpleNamespace(
            history=SimpleNamespace(recall=self.kept),
            policy=SimpleNamespace(**(given | policy)),
            segments=[segment("a"), segment("b", 5)],
            attempts=SimpleNamespace(find=lambda id_: id_ if id_ in self.here else None),
            checkpoints=SimpleNamespace(
                trusted_to=lambda id_: self.trusted.get(id_, math.inf),
                settled_on=lambda segments: self.settled if segments else {},
            ),
            journal=SimpleNamespace(position_is_written=self._write),
        )

    async def _write(self, scope: Any) -> None:
        self.written.append(scope.id)

    def attempt(
        self,
        name: str = "a",
        checkpoint: CheckpointRecord | None = KNOWN,
        *,
        begun: int = 5,
        **facts: Any,
    ) -> Attempt:
        scope = SimpleNamespace(
            run=self.run,
            id=name,
            number=3,
            segment=segment(name),
            checkpoint=checkpoint,
            start_step=0 if checkpoint is None else checkpoint.step,
            client=SimpleNamespace(begun=begun),
            closed=facts.get("closed", False),
            left=anyio.Event(),
            faulty=facts.get("faulty", False),
        )
        if facts.get("left"):
            scope.left.set()
        return Attempt(AttemptRecall(scope))  # type: ignore[arg-type]  # as far as it looks


class Attempt:
    """One that counts what it has made."""

    def __init__(self, recall: AttemptRecall) -> None:
        self.recall = recall

    async def get(self, value: object, key: str = "key") -> Any:
        return await self.recall.get(key, lambda: value)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.recall.trail.passed("forward_backward", count)
            self.recall.trail.stepped(skipped=False)


async def test_a_value_is_given_back_for_the_same_step_of_the_same_weights_and_key() -> None:
    world = World()
    first = world.attempt()
    assert await first.get(1) == 1
    assert await first.get(2) == 1
    assert await first.get(3, "another") == 3
    first.steps(1)
    assert await first.get(4) == 4, "of another step"
    second = world.attempt("b")
    assert await second.get(5) == 1
    second.steps(2)
    assert await second.get(6) == 6
    other = world.attempt("b", KNOWN.model_copy(update={"trail": "other weights"}))
    assert await other.get(7) == 7
    again = world.attempt("b", KNOWN.model_copy(update={"step": 6}))
    assert await again.get(8) == 8, "the same weights at another step"


async def test_what_a_function_awaits_is_made_too() -> None:
    async def make() -> int:
        await anyio.lowlevel.checkpoint()
        return 3

    attempt = World().attempt()
    assert await attempt.recall.get("key", make) == 3
    assert await attempt.get(4) == 3


@pytest.mark.parametrize(("trusted", "given"), [(5.0, 1), (4.0, 2), (math.inf, 1)])
async def test_what_was_made_of_weights_that_may_be_unsound_is_made_again(
    trusted: float, given: int
) -> None:
    world = World()
    assert await world.attempt().get(1) == 1
    world.trusted["a"] = trusted
    assert await world.attempt("b").get(2) == given


@pytest.mark.parametrize(("sound", "given"), [(5, 1), (4, 2), (None, 2)])
async def test_of_an_earlier_process_that_counts_which_its_journal_knew_to_be_sound(
    tmp_path: Path, sound: int | None, given: int
) -> None:
    assert await World(tmp_path).attempt("old").get(1) == 1
    earlier = () if sound is None else (stored("older", sound=9), stored("old", sound=sound))
    later = World(tmp_path, earlier=earlier)
    assert await later.attempt().get(2) == given
    assert later.kept.durable
    unknown = World(tmp_path)
    assert await unknown.attempt("b").get(3) == (3 if given == 1 else 2), "nothing says so"


async def test_of_an_earlier_process_that_counts_too_which_has_turned_out_since(
    tmp_path: Path,
) -> None:
    assert await World(tmp_path).attempt("old").get(1) == 1
    later = World(tmp_path, earlier=(stored("old", sound=9),))
    later.trusted["old"] = 4.0
    assert await later.attempt().get(2) == 2


async def test_what_cannot_be_read_any_more_is_made_again() -> None:
    world = World()
    assert await world.attempt().get(1) == 1
    get = world.kept.values.get

    def of_another_version(place: str) -> Kept | None:
        kept = get(place)
        return None if kept is None else replace(kept, text='{"who": "knows"')

    world.kept.values.get = of_another_version  # type: ignore[method-assign, assignment]  # as it is kept
    assert await world.attempt("b").get(2) == 2


# -- what is kept, and for how long --------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
async def test_only_what_a_later_process_may_ask_for_is_left_on_disk(
    tmp_path: Path, *, named: bool
) -> None:
    world = World(tmp_path, named=named)
    await world.attempt().get(1)
    assert world.kept.durable == named
    assert (tmp_path / FOLDER / LINEAGE).is_dir() == named
    assert world.written == (["a"] if named else [])
    in_memory = World(named=named)
    await in_memory.attempt().get(1)
    assert (in_memory.kept.durable, in_memory.written) == (False, [])


async def test_what_is_too_large_is_made_again_and_nothing_is_written_for_it(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, limit=10)
    attempt = world.attempt()
    assert await attempt.get(1) == 1
    assert await attempt.get(2) == 2
    assert world.written == []


@pytest.mark.parametrize(
    ("settled", "strategy", "given"),
    [
        ({6: ["p"], 9: ["q"]}, "latest", 2),
        ({5: ["p"], 9: ["q"]}, "latest", 1),
        ({9: ["q"]}, "latest", 1),
        ({6: ["p"], 9: ["q"]}, "best:loss", 1),
    ],
)
async def test_what_no_recovery_comes_back_to_is_dropped(
    settled: dict[int, list[str]], strategy: str, given: int
) -> None:
    world = World(checkpoint_strategy=strategy)
    first = world.attempt()
    await first.get(1)
    world.settled = settled
    first.steps(9)
    await first.get(1)
    assert await world.attempt("b").get(2) == given


# -- at once, and by an attempt that is over -----------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1000])
async def test_what_two_ask_for_at_once_is_made_once(limit: int) -> None:
    attempt = World(limit=limit).attempt()
    made, goes_on = list[int](), anyio.Event()

    async def make() -> int:
        made.append(1)
        await goes_on.wait()
        return 3

    asking = [asyncio.create_task(attempt.recall.get("key", make)) for _ in range(3)]
    await anyio.wait_all_tasks_blocked()
    goes_on.set()
    assert await asyncio.gather(*asking) == [3, 3, 3]
    assert made == [1]


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_where_making_it_fails_one_of_those_who_wait_makes_it(how: str) -> None:
    attempt = World(limit=0).attempt()
    goes_on = anyio.Event()

    async def fail() -> int:
        await goes_on.wait()
        raise LookupError

    first = asyncio.create_task(attempt.recall.get("key", fail))
    await anyio.wait_all_tasks_blocked()
    second = asyncio.create_task(attempt.get(4))
    await anyio.wait_all_tasks_blocked()
    assert not second.done()
    if how == "fails":
        goes_on.set()
    else:
        first.cancel()
    with pytest.raises(LookupError if how == "fails" else asyncio.CancelledError):
        await first
    assert await second == 4
    assert await attempt.get(5) == 5, "none is under way any more"


@pytest.mark.parametrize("key", ["", None, 3])
async def test_a_key_that_names_nothing_is_refused(key: Any) -> None:
    with pytest.raises(UsageError, match="it has to be a string that is not empty"):
        await World().attempt().get(1, key)


@pytest.mark.parametrize(
    ("facts", "enabled", "stale"),
    [
        ({}, True, False),
        ({"closed": True}, True, True),
        ({"left": True}, True, True),
        ({"faulty": True}, True, True),
        ({"faulty": True}, False, False),
    ],
)
async def test_an_attempt_that_is_over_is_given_nothing(
    facts: dict[str, Any], *, enabled: bool, stale: bool
) -> None:
    attempt = World(enabled=enabled).attempt(**facts)
    if stale:
        with pytest.raises(StaleAttempt, match="of attempt 3, which is over"):
            await attempt.get(1)
    else:
        assert await attempt.get(1) == 1


# -- which weights are the same ------------------------------------------------------------------


def test_weights_are_followed_from_the_first_that_something_was_asked_for() -> None:
    world = World()
    assert world.attempt().recall.trail.followed is not None, "the checkpoint says what they are"
    unknown = world.attempt("a", record(5))
    assert unknown.recall.trail.followed is None
    assert world.attempt("a", None).recall.trail.followed is None


@pytest.mark.parametrize("checkpoint", [None, record(5)])
async def test_once_something_was_asked_for_each_later_attempt_follows(
    checkpoint: CheckpointRecord | None,
) -> None:
    world = World()
    attempt = world.attempt("a", checkpoint)
    before = attempt.recall.trail.followed
    await attempt.get(1)
    assert (before is None, attempt.recall.trail.followed is None) == (True, False)
    assert world.attempt("b", checkpoint).recall.trail.followed is not None


@pytest.mark.parametrize(
    ("checkpoint", "given"),
    [
        (record(0, attempt="a"), 1),
        (record(5, attempt="a"), 2),
        (record(0, attempt="unknown"), 2),
        (record(0, attempt="a", parent="p"), 2),
    ],
)
async def test_a_checkpoint_of_an_attempts_very_beginning_has_the_weights_it_began_with(
    checkpoint: CheckpointRecord, given: int
) -> None:
    world = World()
    assert await world.attempt("a", None).get(1) == 1
    assert await world.attempt("b", checkpoint).get(2) == given


async def test_weights_without_their_optimizer_are_like_no_others() -> None:
    world = World(restore_optimizer=False)
    assert await world.attempt().get(1) == 1
    assert await world.attempt("b").get(2) == 2
