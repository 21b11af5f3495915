"""Which Tinker runs of a run are listed again, and what of them is remembered."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import anyio
import httpx
import pytest
from inspection import connection_of
from made import LINEAGE, NOW, listed_json, path, record, segment
from pydantic import SecretStr

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, StatusRefused
from tinker_recovery.checkpoints import Segment, WeightsFacts, checkpoint_metadata
from tinker_recovery.clock import Clock
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.retention.collector import Collector
from tinker_recovery.service import StatusReader, TinkerBackend
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.listing import AT_ONCE, LATE_S, Listings

URL = "http://127.0.0.1:1"
RUNS = ["a", "b", "c"]
START_S = NOW.timestamp()


class Service:
    """Lists checkpoints, deletes them, and counts what it is asked for."""

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.listings: Counter[str] = Counter()
        self.refused: set[str] = set()
        self.by_user: set[str] = set()
        self.most_at_once = self._at_once = 0
        self.now_s = START_S

    def save(self, step: int, run: str, **changes: object) -> str:
        made = record(step, run)
        metadata = checkpoint_metadata(
            step=step,
            lineage=LINEAGE,
            attempt=run,
            parent=None,
            saved_by="user" if run in self.by_user else "schedule",
        )
        self.stored[made.path] = listed_json(made, metadata, **changes)
        return made.path

    async def answer(self, request: httpx.Request) -> httpx.Response:
        parts = request.url.path.removeprefix("/api/v1/").split("/")
        if request.method == "DELETE":
            found = self.stored.pop(f"tinker://{parts[1]}/{parts[3]}/{parts[4]}", None)
            return httpx.Response(404 if found is None else 200, json={})
        if parts[-1] == "weights_info":
            return httpx.Response(405, json={})
        if parts[-1] != "checkpoints":
            return httpx.Response(200, json={})
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await anyio.sleep(0.001)
        self._at_once -= 1
        run = parts[1]
        self.listings[run] += 1
        if run in self.refused:
            return httpx.Response(400, json={})
        mine = [each for where, each in self.stored.items() if where.startswith(f"tinker://{run}/")]
        return httpx.Response(200, json={"checkpoints": mine})

    def reader(self) -> StatusReader:
        endpoint = Endpoint(URL, SecretStr("tml-x"))
        transport = httpx.MockTransport(self.answer)
        return StatusReader(endpoint, transport=transport, wall=lambda: self.now_s)


async def _look(
    listings: Listings, reader: StatusReader, *unsettled: str, runs: list[str] = RUNS
) -> None:
    due = listings.due(runs, unsettled, now_s=reader.service_now())
    await listings.update(reader, due)


async def test_a_closed_run_is_listed_until_it_was_the_same_twice_and_then_no_more() -> None:
    service, listings = Service(), Listings()
    service.save(1, "a")
    async with service.reader() as reader:
        await _look(listings, reader)
        service.save(2, "a")  # was listed late
        for _ in range(5):
            await _look(listings, reader)
    assert service.listings == {"a": 3, "b": 2, "c": 6}
    assert [each.path for each in listings.of(RUNS)] == list(service.stored)


async def test_a_run_is_listed_again_once_something_of_it_was_changed_or_has_expired() -> None:
    service, listings = Service(), Listings()
    service.save(1, "a", expires_at=(NOW + timedelta(seconds=60)).isoformat())
    async with service.reader() as reader:
        for _ in range(3):
            await _look(listings, reader)
        listings.forget("b")
        await _look(listings, reader)
        assert (service.listings["a"], service.listings["b"]) == (2, 3)
        service.now_s += 60
        service.stored.clear()
        await _look(listings, reader)
    assert service.listings["a"] == 3
    assert listings.of(RUNS) == []


async def test_a_run_that_a_save_may_still_reach_is_listed_for_a_while() -> None:
    service, listings = Service(), Listings()
    late = "tinker://a/weights/step-00000002-x"
    async with service.reader() as reader:
        for _ in range(4):
            await _look(listings, reader, late)
        assert service.listings["a"] == 4
        service.now_s += LATE_S
        await _look(listings, reader, late)
    assert service.listings["a"] == 4


async def test_listings_are_asked_for_side_by_side_with_a_bound() -> None:
    service, listings = Service(), Listings()
    runs = [f"run-{number}" for number in range(3 * AT_ONCE)]
    async with service.reader() as reader:
        await _look(listings, reader, runs=runs)
    assert 1 < service.most_at_once <= AT_ONCE
    assert set(service.listings) == set(runs)


async def test_one_that_cannot_be_read_is_an_error_of_its_own() -> None:
    service, listings = Service(), Listings()
    service.refused = {"b"}
    async with service.reader() as reader:
        with pytest.raises(StatusRefused, match="400"):
            await _look(listings, reader)


class _Run:
    """A run with one Tinker run behind another."""

    name, lineage, lease, recovering = "r", LINEAGE, None, False
    weights = WeightsFacts()

    def __init__(self) -> None:
        self.checkpoints = CheckpointState("r")
        self.segments: list[Segment] = [segment("a")]
        self.protected: dict[str, str] = {}

    def is_pending(self, _: object) -> bool:
        return False


@pytest.fixture
async def collected(request: pytest.FixtureRequest) -> Any:
    """A service, a run of three Tinker runs whose first is remembered, and its Collector."""
    service, run = Service(), _Run()
    more: dict[str, Any] = getattr(request, "param", {})
    if more:
        service.by_user = {"a"}
    kept = CheckpointPolicy(keep_last=4, save_best=False, max_deletes_per_s=1e6, **more)
    async with service.reader() as reader, Notebook(Journal(None, service=URL)) as notebook:
        collector = Collector(
            Collaborators(
                RecoveryPolicy(checkpoints=kept),
                TinkerBackend(),
                reader,
                notebook,
                clock=Clock(wall=lambda: service.now_s),
            )
        )
        for step in (1, 2, 3):
            last = service.save(step, "a")
        run.segments.append(segment("b", 3, last))
        last = service.save(4, "b")
        run.segments.append(segment("c", 4, last))
        for _ in range(3):
            await collector.collect(run)
        asked = service.listings.copy()
        await collector.collect(run)
        assert service.listings - asked == {"b": 1, "c": 1}, "it began from one of b"
        yield service, run, collector


async def test_what_nothing_changes_about_is_deleted_as_ever(
    collected: tuple[Service, _Run, Collector],
) -> None:
    service, run, collector = collected
    service.save(5, "c")
    await collector.collect(run)
    assert path("a", 1) not in service.stored
    assert len(service.stored) == 4


@pytest.mark.parametrize(
    "collected",
    [{}, {"delete_user_saves": True}],
    ids=["of the schedule", "the user's own"],
    indirect=True,
)
async def test_what_was_published_since_it_was_listed_is_not_deleted(
    collected: tuple[Service, _Run, Collector],
) -> None:
    service, run, collector = collected
    public = service.save(1, "a", public=True)
    service.save(5, "c")
    await collector.collect(run)
    assert public in service.stored


async def test_what_is_gone_since_it_was_listed_counts_for_nothing(
    collected: tuple[Service, _Run, Collector],
) -> None:
    service, run, collector = collected
    del service.stored[path("a", 2)]  # by another program
    service.save(5, "c")
    await collector.collect(run)
    assert sorted(service.stored) == [path("a", 1), path("a", 3), path("b", 4), path("c", 5)]


async def test_what_is_relied_on_is_renewed_with_the_reason_why(
    collected: tuple[Service, _Run, Collector],
) -> None:
    service, run, collector = collected
    newest = service.save(5, "c")
    run.checkpoints.confirmed_to = lambda _: 4.0
    assert (await collector.look(run)).needed == {
        newest: "the newest valid one",
        path("b", 4): "the one recovered from",
    }
    run.segments.append(segment("d", 5, newest))
    assert (await collector.look(run)).needed == {
        newest: "the one recovered from",
        path("b", 4): "the newest one known to be sound",
    }


async def _reads(count: int) -> int:
    """How often all notes of the journal are read in a collection that deletes so many."""
    service, run, journal = Service(), _Run(), Journal(None, service=URL)
    kept = CheckpointPolicy(keep_last=1, save_best=False, max_deletes_per_s=1e6)
    read: list[str] = []
    for step in range(count + 1):
        service.save(step, "a")
    async with service.reader() as reader, Notebook(journal) as notebook:
        connection_of(journal).set_trace_callback(
            lambda said: (
                read.append(said)
                if said.startswith("SELECT kind") and " path = " not in said
                else None
            )
        )
        collaborators = Collaborators(
            RecoveryPolicy(checkpoints=kept), TinkerBackend(), reader, notebook
        )
        done = await Collector(collaborators).collect(run)
    assert len(done.deleted) == count
    return len(read)


async def test_the_notes_are_read_with_each_look_and_not_with_each_deletion() -> None:
    assert await _reads(20) == await _reads(2)


async def test_a_deletion_is_remembered_for_as_long_as_its_request_may_still_be_carried_out() -> (
    None
):
    """A run of months deletes thousands, and its journal is read with each look."""
    service, run = Service(), _Run()
    kept = CheckpointPolicy(keep_last=1, save_best=False, max_deletes_per_s=1e6)
    for step in (1, 2, 3):
        service.save(step, "a")
    clock = Clock(wall=lambda: service.now_s)
    known: list[int] = []
    async with service.reader() as reader, Notebook(Journal(None, service=URL)) as notebook:
        collaborators = Collaborators(
            RecoveryPolicy(checkpoints=kept), TinkerBackend(), reader, notebook, clock=clock
        )
        for later_s in (0, 600, 601):
            service.now_s = START_S + later_s
            await Collector(collaborators).collect(run)
            known.append(len((await notebook.notes()).deletions))
    assert known == [2, 2, 0]
