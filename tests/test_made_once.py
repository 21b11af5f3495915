"""What ``attempt.once`` notes, finds again and refuses: with a run and clients made up here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import tinker
from made import NOW, segment

from tinker_recovery import UsageError
from tinker_recovery.errors import JournalError
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.run.once import Once, _prefix
from tinker_recovery.service.sampler import Source, SupervisedSampler


class World:
    """A run with a journal in memory, and what the service lists of each of its Tinker runs."""

    def __init__(self, notebook: Any, *, resumed: bool = False) -> None:
        self.listed: dict[str, Sequence[Any]] = {}
        self.asked: list[str] = []
        self.saved: list[str] = []
        self.run: Any = SimpleNamespace(
            name="r",
            lineage="mine",
            start_step=0,
            snapshot=object() if resumed else None,
            segments=[segment("a"), segment("b")],
            collaborators=SimpleNamespace(
                notebook=notebook, reader=SimpleNamespace(checkpoints=self._checkpoints)
            ),
        )
        self.once = Once()

    async def _checkpoints(self, run_id: str) -> Sequence[Any]:
        self.asked.append(run_id)
        return self.listed.get(run_id, ())

    def attempt(self, *, start_step: int = 0, step: int = 0, weights: int = 0) -> Any:
        async def create_sampling_client(path: str | None = None, **given: Any) -> str:
            return f"samples from {path or given['base_model']}"

        async def save_weights_for_sampler(name: str) -> Any:
            self.saved.append(name)
            return SimpleNamespace(path=f"tinker://a/sampler_weights/{name}")

        client = SimpleNamespace(
            create_sampling_client=create_sampling_client,
            save_weights_for_sampler=save_weights_for_sampler,
            step=step,
            weights=weights,
        )
        service = SimpleNamespace(create_sampling_client=create_sampling_client)
        return SimpleNamespace(
            run=self.run, made_once={}, client=client, service=service, start_step=start_step
        )

    async def get(self, made: object, key: str = "key", attempt: Any = None) -> Any:
        return await self.once.get(attempt or self.attempt(), key, lambda: made)


def notebook() -> Notebook:
    return Notebook(Journal(None, service="http://127.0.0.1:1"))


async def test_a_value_is_made_once_in_all_attempts_and_processes() -> None:
    async with notebook() as kept:
        first = World(kept)
        assert await first.get(3) == 3
        assert await first.get(4) == 3
        assert await first.get(5, "another") == 5
        later = World(kept, resumed=True)
        assert await later.get(6) == 3
        assert later.asked == [], "the journal has it"

        def make() -> None:
            raise AssertionError("it is made already")

        assert await World(kept).once.get(later.attempt(), "key", make) == 3
        other = World(kept)
        other.run.lineage = "theirs"
        assert await other.get(7) == 7
        with pytest.raises(UsageError, match="key=''"):
            await other.get(8, "")


async def test_what_an_attempt_was_given_it_is_given_again() -> None:
    async with notebook() as kept:
        world = World(kept)
        attempt, value = world.attempt(), {"at": 1}
        assert await world.get(value, attempt=attempt) is await world.get({}, attempt=attempt)
        sampler = await world.get(_sampler(path="p"), "sampler", attempt)
        assert await world.get(1, "sampler", attempt) is sampler
        assert await world.get(1, "sampler") is not sampler, "another attempt has one of its own"


async def test_what_another_task_was_quicker_to_note_is_what_there_is() -> None:
    class Quicker(Notebook):
        async def note_made_once(self, *given: Any) -> None:
            lineage, key, _ = given
            await super().note_made_once(lineage, key, '{"value": "theirs"}')

    async with Quicker(Journal(None, service="http://127.0.0.1:1")) as kept:
        assert await World(kept).get("ours") == "theirs"


async def test_what_cannot_be_noted_is_kept_in_this_process_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object) -> None:
        raise JournalError("the disk is full")

    async def nothing(*_: object) -> None:
        return None

    world = World(SimpleNamespace(note_made_once=fail, made_once=nothing))
    with caplog.at_level(logging.WARNING):
        assert await world.get(3) == 3
        assert await world.get(4) == 3
    assert "a later process will not find once('key'): the disk is full" in caplog.text
    unread = World(SimpleNamespace(note_made_once=nothing, made_once=nothing))
    assert await unread.get(3) == 3


def _saved(key: str, run: str, name: str, minutes: int) -> Any:
    where = f"tinker://{run}/sampler_weights/{_prefix(key)}{name}"
    return SimpleNamespace(tinker_path=where, time=NOW + timedelta(minutes=minutes))


async def test_sampler_weights_of_an_earlier_process_are_found_at_the_service() -> None:
    async with notebook() as kept:
        world = World(kept, resumed=True)
        world.listed["b"] = [
            _saved("other", "b", "x", 0),
            _saved("key", "b", "later", 2),
            _saved("key", "b", "first", 1),
        ]
        assert await world.get(3) == f"samples from {world.listed['b'][2].tinker_path}"
        assert world.asked == ["a", "b"]
        assert await world.get(4, "third") == 4, "there is none of it"
        world.listed["a"] = [_saved("fourth", "a", "x", 9)]
        world.asked.clear()
        assert "sampler_weights" in await world.get(5, "fourth")
        assert world.asked == ["a"]
        new = World(kept)
        new.listed["a"] = [_saved("fifth", "a", "x", 9)]
        assert await new.get(6, "fifth") == 6
        assert new.asked == [], "a run that begins has none"


def _sampler(**source: Any) -> SupervisedSampler:
    made = SupervisedSampler.__new__(SupervisedSampler)
    made.source = Source(**source)
    return made


@pytest.mark.parametrize("source", [{"path": "p"}, {"base_model": "p"}])
async def test_where_a_sampling_client_samples_from_is_kept_and_not_the_client(
    source: dict[str, str],
) -> None:
    async with notebook() as kept:
        world = World(kept)
        assert await world.get(_sampler(**source)) == "samples from p"
        assert await World(kept).get(1) == "samples from p"
        assert world.saved == []


@pytest.mark.parametrize(
    ("start", "step", "refused"),
    [(0, 0, None), (0, 4, None), (4, 5, None), (4, 4, "would be made of the weights of step 4")],
)
async def test_weights_that_only_the_client_has_are_saved_unless_an_attempt_before_trained_them(
    start: int, step: int, refused: str | None
) -> None:
    async with notebook() as kept:
        world = World(kept)
        attempt = world.attempt(start_step=start, step=step, weights=9)
        sampler = _sampler(step=step, weights=9)
        if refused is not None:
            with pytest.raises(UsageError, match=refused):
                await world.get(sampler, attempt=attempt)
            assert world.saved == []
            return
        said = await world.get(sampler, attempt=attempt)
        (name,) = world.saved
        assert name.startswith(_prefix("key"))
        assert said == f"samples from tinker://a/sampler_weights/{name}"


async def test_what_would_be_of_other_weights_or_of_unknown_ones_or_cannot_be_kept_is_refused() -> (
    None
):
    async with notebook() as kept:
        world = World(kept)
        attempt = world.attempt(step=5, weights=9)
        with pytest.raises(UsageError, match="of step 4, and the training is at step 5"):
            await world.get(_sampler(step=4, weights=8), attempt=attempt)
        foreign = tinker.SamplingClient.__new__(tinker.SamplingClient)
        with pytest.raises(UsageError, match="a sampling client that the attempt did not make"):
            await world.get(foreign)
        with pytest.raises(UsageError, match="what once"):
            await world.get({1, 2})
        assert await world.get(7) == 7, "nothing was kept of these"
