"""Run records, as they are written and as another process reads them: real files and threads."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from inspection import set_sample_s

from tinker_recovery.errors import JournalError, LeaseLost
from tinker_recovery.journal import HeldLease, Journal, Recorder, RunRecord, RunRequest, run_sql
from tinker_recovery.journal.reading import read_events, read_run, read_runs
from tinker_recovery.journal.recorder import SAMPLES_AT_ONCE
from tinker_recovery.journal.summary import read_summaries
from tinker_recovery.telemetry import RecoveryEvent, names

SERVICE = "http://127.0.0.1:1"
KEY = "tml-this-is-a-key"


def request(name: str = "sft", *, named: bool = True) -> RunRequest:
    return RunRequest(
        service=SERVICE,
        name=name,
        named=named,
        lineage="abc",
        origin={"way": "base_model", "base_model": "m", "options": {"seed": 7}},
        policy={"strategy": "steps", "save_every": 5},
        start_step=0,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


@pytest_asyncio.fixture
async def recorder(file: Path) -> AsyncIterator[Recorder]:
    with Journal(file, service=SERVICE) as journal:
        async with Recorder(journal, service=SERVICE) as recorder:
            yield recorder


async def _open(recorder: Recorder, name: str = "sft") -> RunRecord:
    record = await recorder.open_run(request(name))
    assert isinstance(record, RunRecord)
    return record


async def _written(record: RunRecord) -> None:
    """Wait until everything queued so far is on disk."""
    await record.submit(lambda _: None)


async def test_another_process_reads_a_run_while_it_is_being_written(
    recorder: Recorder, file: Path
) -> None:
    record = await _open(recorder)
    await record.attempt_begins(1, "a1", "session:train:0", 0, None)
    record.reported(3, {"loss": 2.5, "lr": 0.1})
    record.stepped("a1", 6, sound=5, polled=5)
    record.saved("a1", "tinker://session:train:0/weights/x", 5, sound=True)
    record.fault(("request_failed", "call", 7), "a1", 6.0, recovers=True)
    events: list[tuple[str, dict[str, str | int]]] = [
        (names.EVENT_DETECTED, {}),
        (names.EVENT_STARTED, {}),
        (
            names.EVENT_CHECKPOINT_SELECTED,
            {names.CHECKPOINT_PATH: "tinker://session:train:0/weights/x", names.CHECKPOINT_STEP: 5},
        ),
        (names.EVENT_CLIENT_CREATED, {names.RUN_ID: "session-2:train:0"}),
    ]
    for name, fields in events:
        recorder.note_event(RecoveryEvent(name, "sft", "said", fields))
    await _written(record)
    run = read_run(file, "sft")
    assert run is not None
    assert (run.state, run.live, run.step, run.next_save_step) == ("recovering", True, 6, 10)
    (incident,) = run.incidents
    assert (incident.kind, incident.phase, incident.to_step) == ("request_failed", "created", 5)
    assert [(point.step, point.loss, point.metrics) for point in run.progress] == [
        (3, 2.5, {"loss": 2.5, "lr": 0.1})
    ]
    assert [saved.step for saved in run.checkpoints] == [5]
    assert next(event.name for event in read_events(file, "sft")) == names.EVENT_DETECTED
    recorder.note_event(RecoveryEvent(names.EVENT_COMPLETED, "sft", "recovered"))
    await record.attempt_begins(2, "a2", "session-2:train:0", 5, run.checkpoints[0].path)
    await record.end("finished")
    run = read_run(file, "sft", service=SERVICE)
    assert run is not None
    assert [each.outcome for each in run.attempts] == ["request_failed", "finished"]
    assert run.incidents[0].outcome == "recovered"
    assert (run.state, run.live, run.holder) == ("finished", False, None)
    assert [each.name for each in read_runs(file)] == ["sft"]


async def test_events_are_read_from_the_last_one_read_on(recorder: Recorder, file: Path) -> None:
    record = await _open(recorder)
    for number in range(5):
        recorder.note_event(RecoveryEvent(names.EVENT_STARTED, "sft", str(number)))
    recorder.note_event(RecoveryEvent(names.EVENT_POLL_ERROR, "", "of no run"))
    await _written(record)
    first = read_events(file, "sft", limit=3)
    assert [event.message for event in first] == ["2", "3", "4"]
    assert read_events(file, "sft", after=first[-1].id) == []
    assert [(event.run, event.message) for event in read_events(file)][-1] == ("", "of no run")


async def test_at_most_two_thousand_losses_are_kept_of_a_run(
    recorder: Recorder, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_sample_s(monkeypatch, 0.0)
    record = await _open(recorder)
    for step in range(5_000):
        record.reported(step, {"loss": float(step)})
    await _written(record)
    run = read_run(file, "sft")
    assert run is not None
    steps = [point.step for point in run.progress]
    assert len(steps) <= run_sql.POINTS
    assert (steps[0], steps[-1]) == (0, 4_999)


async def test_an_api_key_and_a_signature_never_reach_the_file(
    recorder: Recorder, file: Path
) -> None:
    record = await _open(recorder)
    message = f"refused {KEY}, see https://x/y?X-Amz-Signature=deadbeef&part=1"
    recorder.note_event(RecoveryEvent(names.EVENT_FAILED, "sft", message, {"said": message}))
    await record.end("failed", message)
    (event,) = read_events(file)
    assert event.message == "refused ***, see https://x/y?X-Amz-Signature=***&part=1"
    raw = b"".join(each.read_bytes() for each in file.parent.iterdir())
    assert KEY.encode() not in raw
    assert b"deadbeef" not in raw


async def test_a_run_held_here_is_not_given_to_a_second(recorder: Recorder, file: Path) -> None:
    await _open(recorder)
    with Journal(file, service=SERVICE) as journal:
        async with Recorder(journal, service=SERVICE) as second:
            held = await second.open_run(request())
    assert isinstance(held, HeldLease)
    assert held.by.lives() is True


async def test_a_token_that_is_no_longer_valid_writes_nothing(
    recorder: Recorder, file: Path
) -> None:
    """As when a holder that cannot be seen was only suspended, and has lost the run since."""
    record = await _open(recorder)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE leases SET token = token + 1, holder = 'another'")
    record.saved("a1", "tinker://r/weights/late", 5, sound=True)
    with pytest.raises(LeaseLost, match="taken over by another process"):
        await record.attempt_begins(1, "a1", "r", 0, None)
    await record.end("finished")
    run = read_run(file, "sft")
    assert run is not None
    assert (run.state, run.attempts, run.checkpoints) == ("training", (), ())


async def test_a_lost_lease_is_noticed_by_the_next_heartbeat(file: Path) -> None:
    lost = threading.Event()
    with Journal(file, service=SERVICE) as journal:
        async with Recorder(journal, service=SERVICE, heartbeat_s=0.01) as recorder:
            record = await _open(recorder)
            record.on_lost = lambda _: lost.set()
            with closing(sqlite3.connect(file)) as database, database:
                database.execute("UPDATE leases SET token = token + 1, holder = 'another'")
            assert lost.wait(5)


async def test_a_restart_finds_how_far_the_run_had_got(recorder: Recorder, file: Path) -> None:
    record = await _open(recorder)
    await record.attempt_begins(1, "a1", "session:train:0", 0, None)
    record.stepped("a1", 8, sound=7, polled=5)
    record.fault(("request_failed", "call", 8), "a1", 6.0, recovers=True)
    recorder.note_event(
        RecoveryEvent(names.EVENT_CLIENT_CREATED, "sft", "made", {names.RUN_ID: "left:train:0"})
    )
    await _written(record)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE leases SET holder = ''")  # as of a process that is dead
    with Journal(file, service=SERVICE) as journal:
        async with Recorder(journal, service=SERVICE) as second:
            again = await _open(second)
            stored = again.stored
            await again.begin(request(), anew=False)
    assert stored is not None
    (attempt,) = stored.attempts
    assert (stored.step, attempt.sound_step, attempt.trusted_to) == (8, 7, 6.0)
    assert (attempt.polled_step, attempt.faulty) == (5, True)
    assert stored.leftovers == ("left:train:0",)
    assert stored.origin["options"] == {"seed": 7}
    run = read_run(file, "sft")
    assert run is not None
    assert run.incidents[0].outcome == "cut_off"


def test_a_journal_of_the_first_version_is_migrated_with_its_notes(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "CREATE TABLE notes (service TEXT NOT NULL, path TEXT NOT NULL, kind TEXT NOT NULL, "
            "said TEXT NOT NULL, PRIMARY KEY (service, path, kind)) WITHOUT ROWID"
        )
        database.execute(
            "INSERT INTO notes VALUES (?, 'tinker://r/weights/p', 'pinned', 'mine')", (SERVICE,)
        )
        database.execute("PRAGMA user_version = 1")
    with pytest.raises(JournalError, match="schema 1, which holds no runs"):
        read_runs(file)
    with Journal(file, service=SERVICE) as journal:
        assert journal.notes().pinned == {"tinker://r/weights/p": "mine"}
    assert read_runs(file) == []


def test_reading_a_missing_journal_does_not_create_it(file: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal at"):
        read_runs(file)
    assert not file.exists()


async def test_a_checkpoint_that_was_deleted_is_gone_from_then_on(
    recorder: Recorder, file: Path
) -> None:
    record = await _open(recorder)
    path = "tinker://session:train:0/weights/x"
    await record.attempt_begins(1, "a1", "session:train:0", 0, None)
    for name in ("x", "y"):
        record.saved("a1", f"tinker://session:train:0/weights/{name}", 5, sound=True)
    recorder.note_event(
        RecoveryEvent(names.EVENT_CHECKPOINT_DELETED, "sft", "why", {names.CHECKPOINT_PATH: path})
    )
    await _written(record)
    run = read_run(file, "sft")
    assert run is not None
    assert [(each.path[-1], each.gone) for each in run.checkpoints] == [("x", True), ("y", False)]


async def test_of_a_short_run_every_loss_is_kept_and_of_a_long_one_a_sample(
    recorder: Recorder, file: Path
) -> None:
    record = await _open(recorder)
    for step in range(SAMPLES_AT_ONCE + 100):
        record.reported(step, {"loss": 1.0})
    await _written(record)
    run = read_run(file, "sft")
    assert run is not None
    steps = [each.step for each in run.progress]
    assert steps[:SAMPLES_AT_ONCE] == list(range(SAMPLES_AT_ONCE))
    assert len(steps) < SAMPLES_AT_ONCE + 50


async def test_summaries_of_many_runs_have_the_newest_entries_of_each(
    recorder: Recorder, file: Path
) -> None:
    record, _ = await _open(recorder), await _open(recorder, "other")
    await record.attempt_begins(1, "a1", "session:train:0", 0, None)
    for step in range(5):
        record.reported(step, {"loss": float(step)})
    for step in (5, 10):
        record.saved("a1", f"tinker://session:train:0/weights/{step}", step, sound=True)
        recorder.note_event(RecoveryEvent(names.EVENT_CHECKPOINT_SAVED, "sft", f"at {step}"))
    await _written(record)
    summaries = {each.run.name: each for each in read_summaries(file, losses=3)}
    assert summaries.keys() == {"sft", "other"}
    sft, other = summaries["sft"], summaries["other"]
    assert (sft.attempts, sft.recoveries, sft.losses) == (1, 0, (2.0, 3.0, 4.0))
    assert sft.checkpoint is not None
    assert sft.checkpoint.step == 10
    assert sft.event is not None
    assert sft.event.message == "at 10"
    assert (other.attempts, other.losses, other.checkpoint, other.event) == (0, (), None, None)
    assert [each.run.name for each in read_summaries(file, "other")] == ["other"]


async def test_a_loss_that_stands_out_is_kept_whatever_the_sample_and_however_often_thinned(
    recorder: Recorder, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await _open(recorder)
    spikes = {SAMPLES_AT_ONCE + 57: 40.0, 801: 30.0}
    for step in range(1_000):
        record.reported(step, {"loss": spikes.get(step, 1.0 + step % 7 / 10)})
    set_sample_s(monkeypatch, 0.0)  # from here on each is due
    for step in range(1_000, 6_000):
        record.reported(step, {"loss": 99.0 if step == 2_222 else 1.0 + step % 7 / 10})
    await _written(record)
    run = read_run(file, "sft")
    assert run is not None
    losses = {point.step: point.loss for point in run.progress}
    assert max(losses.values(), key=lambda loss: loss or 0) == 99.0
    assert losses.keys() & spikes.keys(), "the highest of those between two samples"
    assert len(losses) <= run_sql.POINTS


async def test_losses_of_steps_that_are_done_again_are_set_aside(
    recorder: Recorder, file: Path
) -> None:
    record = await _open(recorder)
    await record.attempt_begins(1, "a1", "s:train:0", 0, None)
    for step in range(8):
        record.reported(step, {"loss": float(step)})
    await _written(record)
    await record.attempt_begins(2, "a2", "s:train:1", 5, "tinker://s:train:0/weights/x")
    record.reported(5, {"loss": 50.0})
    await _written(record)
    run = read_run(file, "sft")
    assert run is not None
    kept = [(point.step, point.loss) for point in run.progress]
    assert kept == [*((step, float(step)) for step in range(5)), (5, 50.0)]
    assert [(point.step, point.loss) for point in run.discarded] == [(5, 5.0), (6, 6.0), (7, 7.0)]
    (summary,) = read_summaries(file, "sft")
    assert summary.losses[-1] == 50.0, "and not one of the branch that was left"


async def test_a_run_that_was_only_opened_is_left_as_it_was_found(
    recorder: Recorder, file: Path
) -> None:
    first = await _open(recorder)
    await first.attempt_begins(1, "a1", "session:train:0", 0, None)
    await first.end("stopped", "cancelled")
    second = await _open(recorder)
    await second.begin(request(), anew=False)
    await second.end(None)
    view = read_run(file, "sft")
    assert view is not None
    assert (view.state, view.detail) == ("stopped", "cancelled")


@pytest.mark.parametrize("ticks", range(6))
async def test_a_lease_that_is_taken_for_a_cancelled_task_is_given_back(
    recorder: Recorder, ticks: int
) -> None:
    taking = asyncio.create_task(recorder.open_run(request()))
    for _ in range(ticks):
        await asyncio.sleep(0)
    if ticks % 2:
        await asyncio.to_thread(recorder.writer.submit(lambda _: None).result)
    taking.cancel()
    await asyncio.wait([taking])
    if taking.cancelled():
        assert isinstance(await recorder.open_run(request()), RunRecord)
