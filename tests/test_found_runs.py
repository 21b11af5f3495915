"""A run put together from its checkpoints, and the one that is meant of several of a name."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from made import NOW, path, record
from pydantic import SecretStr

from tinker_recovery import AmbiguousRun, ContradictoryCheckpoints, NoUsableCheckpoint, UsageError
from tinker_recovery.checkpoints import CheckpointRecord, WeightsFacts, checkpoint_metadata
from tinker_recovery.checkpoints.naming import SaveName, mark_of
from tinker_recovery.clock import SYSTEM_CLOCK
from tinker_recovery.errors import StatusRefused
from tinker_recovery.journal import Journal, Recorder, RunRecord, RunRequest
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery import dry_run
from tinker_recovery.recovery.discovery import (
    MOST_LISTED,
    NEW,
    find_at_service,
    find_further,
    put_together,
)
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service.base import RUN_FINISHED

URL = "http://127.0.0.1:1"
A, B, C = "a:train:0", "b:train:0", "c:train:0"


def made(step: int, run: str = A, **facts: Any) -> CheckpointRecord:
    own: dict[str, Any] = {
        name: facts.pop(name) for name in ("origin", "ended", "run_name") if name in facts
    }
    return record(step, run, **facts).model_copy(update=own)


# -- a run from its checkpoints ------------------------------------------------------------------


def test_each_attempt_begins_where_its_parent_was_saved() -> None:
    own = [made(2), made(4), made(9), made(6, B, parent=path(A, 4))]
    found = put_together(own, {each.path: each.step for each in own})
    first, second = found.attempts
    assert (first.run_id, first.attempt, first.start_step, first.parent) == (A, A, 0, None)
    assert (second.run_id, second.start_step, second.parent) == (B, 4, path(A, 4))
    assert [each.sound_step for each in found.attempts] == [0, 4]
    assert [each.polled_step for each in found.attempts] == [4, 0], "the one before its newest"
    assert all(each.ended and not each.faulty for each in found.attempts)
    assert all(each.trusted_to is None for each in found.attempts)
    assert (found.start_step, found.step, found.state) == (0, 6, "lost")
    assert found.checkpoints == ((path(B, 6), 6),)
    assert (found.origin, found.leftovers) == ({}, ())


def test_a_parent_that_is_gone_is_nothing_to_begin_from() -> None:
    own = [made(6, B, parent=path(A, 4))]
    assert put_together(own, {}).attempts[0].start_step == 0


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_has_finished_if_its_newest_checkpoint_says_so(*, ended: bool) -> None:
    own = [made(2, ended=not ended), made(4, ended=ended)]
    assert put_together(own, {}).state == ("finished" if ended else "lost")


def test_what_is_listed_is_put_in_the_order_of_its_times_and_then_of_its_steps() -> None:
    later = NOW + timedelta(seconds=5)
    own = [made(4, B, parent=path(A, 3), time=later), made(3, time=NOW), made(2, time=NOW)]
    found = put_together(own, {path(A, 3): 3})
    assert [each.run_id for each in found.attempts] == [A, B]
    assert found.attempts[0].polled_step == 2
    assert found.step == 4
    assert put_together(own[1:], {}).checkpoints == ((path(A, 2), 2), (path(A, 3), 3))
    mine = [made(3, time=NOW, saved_by="user"), made(2, time=later, saved_by="user")]
    with pytest.raises(ContradictoryCheckpoints):
        put_together([made(3, time=NOW), made(2, time=NOW + timedelta(hours=1))], {})
    assert put_together(mine, {}).step == 2, "the time comes first"


def test_where_the_user_had_it_begin_holds_for_each_attempt_that_began_there() -> None:
    root = path(C, 100)
    origin = {"from_checkpoint": root, "start_step": 7}
    own = [
        made(8, A, parent=root, origin={"from_checkpoint": root}),
        made(9, B, parent=root, origin=origin),
        made(11, C, parent=path(B, 9)),
    ]
    found = put_together(own, {root: 100, path(B, 9): 9})
    assert [each.start_step for each in found.attempts] == [7, 7, 9]
    assert found.start_step == 7
    assert found.origin == {"from_checkpoint": root}
    assert own[1].origin == origin, "what was listed is left as it is"
    without = put_together([made(3), made(5, B, parent=path(A, 3), origin={"seed": 1})], {})
    assert without.origin == {"seed": 1}


@pytest.mark.parametrize("two", [True, False])
def test_what_cannot_all_be_of_one_run_is_refused_with_its_paths_and_the_ways_out(
    *, two: bool
) -> None:
    odd = made(3, B, run_name="mine", **({"attempt": A} if two else {"parent": path(B, 3)}))
    own = [made(2, run_name="mine"), odd] if two else [odd]
    with pytest.raises(ContradictoryCheckpoints) as raised:
        put_together(own, {})
    assert set(raised.value.paths) == {each.path for each in own}
    names = "name run" if two else "names run"
    assert f"{names} 'mine' and cannot be trusted" in str(raised.value)
    assert f'lineage="{NEW}"' in str(raised.value)


# -- the service ---------------------------------------------------------------------------------


class World:
    """What a service lists of the runs of all names, and says of each."""

    def __init__(self) -> None:
        self.listed: list[dict[str, Any]] = []
        self.gone: set[str] = set()
        """Tinker runs that it refuses to say anything of."""
        self.ended: dict[str, str] = {}
        """With what each session was finished."""
        self.list_status = 200

    def save(self, step: int, run: str, lineage: str, *, name: str = "r", **facts: Any) -> str:
        metadata = checkpoint_metadata(
            step=step,
            lineage=lineage,
            attempt=f"{run}-{lineage}",
            saved_by="user",
            run_name=name,
            **{"parent": None, **facts},
        )
        at = NOW + timedelta(minutes=len(self.listed))
        self.listed.append(
            {
                "checkpoint_id": f"weights/{step}",
                "checkpoint_type": "training",
                "time": at.isoformat(),
                "tinker_path": path(run, step),
                "size_bytes": 10,
                "user_metadata": metadata,
            }
        )
        return path(run, step)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        where = request.url.path.removeprefix("/api/v1/")
        if where == "checkpoints":
            return httpx.Response(self.list_status, json={"checkpoints": self.listed})
        if where == "sessions/search":
            session = httpx.Response(200, content=request.content).json()["session_id"]
            said = self.ended.get(session)
            how = {"type": "success"}
            found = {
                "session_id": session,
                "created_at": NOW.isoformat(),
                "owner": "us",
                "project_id": "p",
                "checkpoints_count": 1,
                "status": {"type": "client_finished", "reason": how, "detail": said},
            }
            return httpx.Response(200, json={"sessions": [found] if said else []})
        _, run, *rest = where.split("/")
        if rest:
            mine = [each for each in self.listed if f"//{run}/" in each["tinker_path"]]
            return httpx.Response(200, json={"checkpoints": mine})
        if run in self.gone:
            return httpx.Response(404, json={"detail": "no such run"})
        facts = {"base_model": "m", "model_owner": "us", "is_lora": True, "lora_rank": 8}
        more = {"training_run_id": run, "last_request_time": NOW.isoformat(), "corrupted": False}
        return httpx.Response(200, json={**facts, **more})

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[StatusReader]:
        endpoint = Endpoint(URL, SecretStr("tml-x"))
        transport = httpx.MockTransport(self._answer)
        async with StatusReader(endpoint, transport=transport, wall=NOW.timestamp) as reader:
            yield reader


async def test_the_only_run_of_a_name_is_found_with_what_the_service_says_of_its_newest() -> None:
    world = World()
    world.save(2, A, "one")
    world.save(4, A, "one")
    world.save(9, B, "two", name="another")
    async with world.reader() as reader:
        found = await find_at_service(reader, "r", known=())
        assert found is not None
        assert (found.stored.lineage, found.stored.step) == ("one", 4)
        assert found.said == {"base_model": "m", "rank": 8}
        assert await find_at_service(reader, "nobody", known=()) is None
        assert await find_at_service(reader, "r", known=("one",)) is None
        assert await find_at_service(reader, "r", known=(), lineage="on") == found
        with pytest.raises(AmbiguousRun, match="no run of the name 'nobody'"):
            await find_at_service(reader, "nobody", known=(), lineage="one")


async def test_of_several_runs_of_a_name_each_is_listed_newest_first_and_one_can_be_chosen() -> (
    None
):
    world = World()
    world.save(9, A, "one-a")
    world.save(2, A, "one-a")
    world.save(5, B, "one-b", ended=True)
    world.save(3, C, "two")
    world.ended["c"] = "something else"
    async with world.reader() as reader:
        for lineage, says in (
            (None, "the service has 3 runs of that name"),
            ("one", "several runs of the name 'r' have the lineage 'one'"),
            ("x", "no run of the name 'r' has the lineage 'x'"),
        ):
            with pytest.raises(AmbiguousRun) as raised:
                await find_at_service(reader, "r", known=(), lineage=lineage)
            assert raised.value.lineages == ("two", "one-b", "one-a")
            assert says in str(raised.value)
        assert re.findall(
            r'lineage="([^"]+)": m, step (\d+), saved .*, (.*)', str(raised.value)
        ) == [
            ("two", "3", "not finished"),
            ("one-b", "5", "finished"),
            ("one-a", "9", "not known to be finished"),
        ]
        chosen = await find_at_service(reader, "r", known=(), lineage="one-b")
        assert chosen is not None
        assert chosen.stored.attempts[0].run_id == B


async def test_a_run_is_found_by_the_name_on_any_of_its_checkpoints_and_listed_as_last_saved() -> (
    None
):
    world = World()
    world.save(2, A, "one", name="earlier")
    world.save(4, A, "one")
    world.save(6, B, "two")
    async with world.reader() as reader:
        with pytest.raises(AmbiguousRun) as raised:
            await find_at_service(reader, "r", known=())
        assert f"step 4, saved {NOW + timedelta(minutes=1):%Y-%m-%d %H:%M:%S}" in str(raised.value)
        found = await find_at_service(reader, "earlier", known=())
        assert found is not None
        assert found.stored.lineage == "one"


async def test_saves_whose_metadata_the_service_forgets_are_known_by_their_names() -> None:
    attempt, lineage = "01234567", "0123456789abcdef"
    for known in ("name", "lineage"):
        world = World()
        world.save(2, A, lineage)
        name = SaveName(2, attempt, mark_of("r"), mark_of(lineage))
        world.listed[-1] |= {
            "tinker_path": f"tinker://{A}/weights/{name}",
            "user_metadata": None,
        }
        async with world.reader() as reader:
            reader.metadata.keeps = "forgotten"
            if known == "name":
                found = await find_at_service(reader, "r", known=())
                assert found is not None
                assert (found.stored.step, found.stored.attempts[0].attempt) == (2, attempt)
            else:
                assert await find_at_service(reader, "r", known=(lineage,)) is None
        async with world.reader() as reader:
            reader.metadata.keeps = "forgotten"
            parent = path(B, 1)
            stored = put_together([made(1, B, lineage=lineage)], {})
            first = stored.attempts[0]
            later = replace(first, attempt=attempt, run_id=A, start_step=1, parent=parent)
            stored = replace(stored, attempts=(first, later))
            again = await find_further(reader, stored, "r")
            assert [each.run_id for each in again.attempts] == [B, A]


async def test_of_very_many_runs_of_a_name_the_newest_are_listed_and_the_rest_counted() -> None:
    for more in (0, 1):
        world = World()
        for number in range(MOST_LISTED + more):
            world.save(1, f"s{number}:train:0", f"l{number:02}")
        world.gone.add(f"s{MOST_LISTED - 1}:train:0")
        async with world.reader() as reader:
            with pytest.raises(AmbiguousRun) as raised:
                await find_at_service(reader, "r", known=())
        lines = str(raised.value).splitlines()
        assert len(lines) == 1 + MOST_LISTED + more
        assert ("and 1 older ones" in lines) == bool(more)
        assert sum("cannot be read" in line for line in lines) == 1


@pytest.mark.parametrize(("detail", "state"), [(RUN_FINISHED, "finished"), ("other", "lost")])
async def test_the_end_of_its_last_session_says_whether_a_run_has_finished(
    detail: str, state: str
) -> None:
    world = World()
    world.save(2, A, "one", ended=state == "lost")
    world.ended["a"] = detail
    async with world.reader() as reader:
        found = await find_at_service(reader, "r", known=())
    assert found is not None
    assert found.stored.state == state


async def test_a_service_without_the_list_has_no_run_and_one_that_fails_is_an_error() -> None:
    world = World()
    world.save(2, A, "one")
    async with world.reader() as reader:
        world.list_status = 404
        assert await find_at_service(reader, "r", known=()) is None
        world.list_status = 403
        with pytest.raises(StatusRefused):
            await find_at_service(reader, "r", known=())


async def test_what_cannot_be_read_of_others_costs_no_run() -> None:
    world = World()
    world.save(2, B, "two")
    metadata = world.listed[-1]["user_metadata"]
    metadata |= {key: "not a number" for key in metadata if key.endswith("step")}
    world.save(2, A, "one")
    async with world.reader() as reader:
        found = await find_at_service(reader, "r", known=())
    assert found is not None
    assert found.stored.lineage == "one"


async def test_what_others_did_of_a_run_since_the_journal_was_written_comes_behind_it() -> None:
    world = World()
    world.save(2, A, "one")
    async with world.reader() as reader:
        found = await find_at_service(reader, "r", known=())
        assert found is not None
        stored = replace(found.stored, origin={"seed": 3})
        world.ended["a"] = RUN_FINISHED
        again = await find_further(reader, stored, "r")
        assert again == replace(stored, state="finished")
        world.save(4, B, "one", parent=path(A, 2))
        further = await find_further(reader, stored, "r")
        assert [each.run_id for each in further.attempts] == [A, B]
        assert (further.origin, further.step, further.state) == ({"seed": 3}, 4, "lost")
        world.listed.clear()
        assert (await find_further(reader, stored, "r")).attempts == stored.attempts


# -- what a dry run restores ---------------------------------------------------------------------


async def test_what_is_to_be_tried_is_found_by_a_name_or_by_a_tinker_run() -> None:
    world = World()
    world.save(2, A, "one")
    world.save(4, A, "one")
    async with world.reader() as reader:
        left = await dry_run.find_left(reader, "r", None)
        assert left.found is not None
        assert (left.name, left.found.step, left.resumes, left.holder) == ("r", 4, True, None)
        left = await dry_run.find_left(reader, A, None)
        assert left.found is not None
        assert (left.name, left.found.step, left.resumes) == (A, 4, False)
        left = await dry_run.find_left(reader, C, None)
        assert left.found is None, "it has saved nothing of ours"
        with pytest.raises(NoUsableCheckpoint, match="says how many optimizer steps"):
            await dry_run.where_it_stands(reader, left, RecoveryPolicy(), SYSTEM_CLOCK)
        world.gone.add(C)
        with pytest.raises(dry_run.NoSuchRun, match="does not know a Tinker run"):
            await dry_run.find_left(reader, C, None)
        with pytest.raises(dry_run.NoSuchRun, match="there is no run 'nobody'"):
            await dry_run.find_left(reader, "nobody", None)


def _request(*, named: bool = True) -> RunRequest:
    policy = {"checkpoint_strategy": "best"}
    return RunRequest(URL, "r", named, "one", {}, policy, 0)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("end", "resumes"), [("finished", False), ("failed", True)])
async def test_a_run_that_the_journal_has_is_taken_from_there(
    tmp_path: Path, end: str, *, named: bool, resumes: bool
) -> None:
    with Journal(tmp_path / "journal", service=URL) as journal:
        async with Recorder(journal, service=URL) as recorder:
            record = await recorder.open_run(_request(named=named))
            assert isinstance(record, RunRecord)
            await record.attempt_begins(1, "a1", A, 0, None)
            await record.end(end)
    world = World()
    world.save(4, B, "two")
    async with world.reader() as reader:
        for name in ("r", A):
            left = await dry_run.find_left(reader, name, tmp_path / "journal")
            assert left.found is not None
            assert (left.name, left.found.lineage, left.strategy) == ("r", "one", "best")
            assert (left.resumes, left.holder) == (resumes and named, None)
        assert await dry_run.find_left(reader, "r", tmp_path / "journal", "on") == left
        other = await dry_run.find_left(reader, "r", tmp_path / "journal", "two")
        assert other.found is not None
        assert (other.found.lineage, other.strategy) == ("two", None)
        assert (await dry_run.find_left(reader, B, tmp_path / "journal")).name == B


async def test_a_run_that_is_being_trained_has_its_process_named(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    with Journal(file, service=URL) as journal:
        async with Recorder(journal, service=URL) as recorder:
            record = await recorder.open_run(_request())
            assert isinstance(record, RunRecord)
            await record.attempt_begins(1, "a1", A, 0, None)
            async with World().reader() as reader:
                left = await dry_run.find_left(reader, "r", file)
            assert left.holder is not None
            assert left.holder.pid == os.getpid()


async def test_of_a_tinker_run_the_newest_of_its_runs_is_meant_with_what_its_parent_says() -> None:
    world = World()
    parent = world.save(7, B, "before")
    world.save(9, A, "old")
    world.save(8, A, "one", parent=parent)
    world.save(8, C, "gone", parent=path("d:train:0", 5))
    async with world.reader() as reader:
        left = await dry_run.find_left(reader, A, None)
        assert left.found is not None
        assert left.found.lineage == "one"
        assert [each.start_step for each in left.found.attempts] == [7]
        left = await dry_run.find_left(reader, C, None)
        assert left.found is not None
        assert [each.start_step for each in left.found.attempts] == [0]


async def test_of_two_that_a_tinker_run_saved_at_one_time_the_further_one_is_the_newest() -> None:
    world = World()
    world.save(3, A, "old")
    world.save(4, A, "one")
    for each in world.listed:
        each["time"] = NOW.isoformat()
    async with world.reader() as reader:
        left = await dry_run.find_left(reader, A, None)
    assert left.found is not None
    assert left.found.lineage == "one"


@pytest.mark.parametrize("there", [True, False])
async def test_a_run_that_is_at_another_service_is_said_to_be_there(
    tmp_path: Path, *, there: bool
) -> None:
    file, other = tmp_path / "journal", "http://127.0.0.1:2"
    with Journal(file, service=other) as journal:
        async with Recorder(journal, service=other) as recorder:
            request = replace(_request(), service=other, name="r" if there else "another")
            record = await recorder.open_run(request)
            assert isinstance(record, RunRecord)
            await record.attempt_begins(1, "a1", A, 0, None)
            await record.end("failed")
    async with World().reader() as reader:
        with pytest.raises(dry_run.NoSuchRun, match="there is no run 'r'") as raised:
            await dry_run.find_left(reader, "r", file)
    assert (f"the run of that name is at {other}" in str(raised.value)) == there
    assert ("; the run of that name" in str(raised.value)) == there


async def test_a_checkpoint_to_try_has_to_be_one_of_the_run() -> None:
    world = World()
    parent = world.save(7, B, "before")
    mine = world.save(8, A, "one", parent=parent)
    bare = world.save(3, A, "one", name="x")
    world.listed[-1]["user_metadata"] = {}
    foreign = world.save(8, C, "two", name="x")
    further = world.save(9, "d:train:0", "one", name="x")
    async with world.reader() as reader:
        left = await dry_run.find_left(reader, A, None)
        for each, is_known in ((mine, True), (parent, True), (further, True), (bare, False)):
            found = await dry_run._for_checkpoint(reader, left, each)
            assert (found is not None) == is_known
            if found is not None:
                assert (found.name, found.lineage) == (A, "one")
                assert found.weights == WeightsFacts("m", 8)
        with pytest.raises(UsageError, match="is no checkpoint of run"):
            await dry_run._for_checkpoint(reader, left, foreign)


def test_what_was_restored_is_refused_if_it_is_of_another_kind() -> None:
    info = SimpleNamespace(model_data=SimpleNamespace(model_name="m"), lora_rank=8)
    client: Any = SimpleNamespace(get_info=lambda: info)
    assert dry_run._seen(client, WeightsFacts("m", 8)) == ("m", 8)
    assert dry_run._seen(client, WeightsFacts()) == ("m", 8)
    for other in (WeightsFacts("m", 16), WeightsFacts("another", 8)):
        with pytest.raises(NoUsableCheckpoint, match="of another kind"):
            dry_run._seen(client, other)
