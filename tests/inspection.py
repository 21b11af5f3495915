"""Where tests look inside: each reach into what is not public, once, and by a name of its own.

A test that needs to see or do what no public name gives calls a function of this module. What moves
inside the package is then mended here, and nowhere else.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import pytest
import tinker
from opentelemetry import trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.metrics import _internal as meters
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import TracerProvider
from opentelemetry.util._once import Once
from tinker.lib.internal_client_holder import sessionless_holder_cache

from tinker_recovery import Attempt, Run, Supervisor, Watch
from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.cli import doctor
from tinker_recovery.detection import poller
from tinker_recovery.doctor import Report
from tinker_recovery.faults import RULES, DetectedBy, Kind
from tinker_recovery.journal import Journal, Recorder, holder
from tinker_recovery.journal.notebook import Notebook
from tinker_recovery.journal.writer import Writer
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.retention.verifier import Verifier
from tinker_recovery.run.background import Background
from tinker_recovery.run.scope import AttemptScope
from tinker_recovery.run.supervised import SupervisedRun
from tinker_recovery.service import Endpoint, StatusReader, download, status
from tinker_recovery.service.claim_line import CLAIM, NOTE
from tinker_recovery.telemetry import EventSink, events, metrics, redaction
from tinker_recovery.telemetry.stream import Streams
from tinker_recovery.testing import FaultRule, LocalTinker
from tinker_recovery.testing._host import Host

# The process


def signal_handlers() -> list[object]:
    """The handlers of SIGINT and SIGTERM, as they are."""
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


# The SDK


def forget_closed_rest_clients() -> None:
    """Have the next ``tinker.RestClient`` of the same address and key be one that works.

    The SDK keeps one of each address for as long as the process lives, also once it is closed; and
    a later server of the tests may get the port of an earlier one.
    """
    holders = sessionless_holder_cache._holders
    for key, kept in list(holders.items()):
        if kept._closed:
            del holders[key]


# A Supervisor and its runs


def event_sink(supervisor: Supervisor) -> EventSink:
    """Where its events go."""
    return supervisor._events


def status_reader(supervisor: Supervisor) -> StatusReader:
    """What its Monitor reads with; only inside the Supervisor."""
    return supervisor._inside.collaborators.reader


async def endpoint(supervisor: Supervisor) -> Endpoint:
    """The service its clients are of."""
    return await supervisor._backend.endpoint()


def faults_left(supervisor: Supervisor) -> bool:
    """Whether a fault waits in its queue, or is being recovered from."""
    queue = supervisor._inside.queue
    return bool(queue._waiting or queue._taken)


def retention_is_scheduled(supervisor: Supervisor) -> bool:
    """Whether its retention worker has held a round, and knows when to look again."""
    return bool(supervisor._inside.retention._next_at)


async def settle_retention(supervisor: Supervisor) -> None:
    """Have its retention worker do what is owed, now."""
    await supervisor._inside.retention.settle(10.0)


def kept_in_memory(run: Run) -> int:
    """Bytes of what a run keeps in memory to be recalled."""
    return sum(map(len, internals_of(run).history.recall.values._memory.values()))


def scope_of(attempt: Attempt) -> AttemptScope:
    """The half of an attempt that its user does not see."""
    return attempt._scope


def internals_of(run: Run) -> SupervisedRun:
    """The run behind the view."""
    return run._run


def run_id_of(attempt: Attempt) -> str:
    """The Tinker run it trains under."""
    return scope_of(attempt).run_id


def in_an_outage(attempt: Attempt) -> bool:
    """Whether its run knows of an outage that is not over, or not looked into."""
    return scope_of(attempt).run.rollbacks._outage is not None


def interval_evidence(attempt: Attempt) -> Evidence:
    """What ``"auto"`` has measured of its run."""
    return scope_of(attempt).run.history.evidence


def ask_to_stop(attempt: Attempt) -> None:
    """As if a signal had asked its process to stop."""
    scope_of(attempt).run.signals.requested = True


async def look_as_while_idle(attempt: Attempt) -> None:
    """Do now what is done where a loop rests, and wait for what that has saved."""
    await scope_of(attempt).client.drain()


def confirmed_step(attempt: Attempt) -> int:
    """The newest step saved when a poll last called its run sound."""
    return scope_of(attempt).run.rollbacks.polled_step


def lose(attempt: Attempt, step: int, loss: float) -> None:
    """Have the client report a loss of this step, late."""
    scope = scope_of(attempt)
    scope.post(scope.declare_bad_loss, step, loss)


def declare(attempt: Attempt, kind: Kind) -> None:
    """Have a poll find the attempt at fault, now."""
    scope_of(attempt).declare_fault(RULES[kind], DetectedBy.POLL)


def stored_paths(run: Run) -> list[str]:
    """The paths of the saves it knows to be stored."""
    return list(internals_of(run).checkpoints.stored)


def rejected(run: Run) -> Mapping[str, str]:
    """The checkpoints it will never use again, each with its reason."""
    return internals_of(run).checkpoints.bad


def expect_size(run: Run, path: str, size_bytes: int) -> None:
    """Have it take a checkpoint for one that was of this size when it was first listed."""
    internals_of(run).checkpoints.sizes[path] = size_bytes


def service_of(attempt: Attempt) -> tinker.ServiceClient:
    """The SDK's client below the attempt's."""
    connection = scope_of(attempt).connection
    assert connection is not None
    service = connection.service
    assert service is not None
    return service


def was_seen_well(watch: Watch) -> bool:
    """Whether a poll has found the watched run sound."""
    return watch._polled.last_good is not None


@contextmanager
def submitting(attempt: Attempt) -> Iterator[None]:
    """Hold its client's lock, as a thread does that submits a request."""
    with attempt.client._lock:
        yield


def under_way(background: Background) -> int:
    """How many background tasks it keeps."""
    return len(background._scopes)


# The journal


def connection_of(journal: Journal | Recorder) -> Connection:
    """Its connection to the file."""
    database = journal.database if isinstance(journal, Journal) else journal._database
    connection = database._database
    assert connection is not None
    return connection


def journal_connection(supervisor: Supervisor) -> Connection:
    """The connection that its runs are recorded by."""
    return connection_of(supervisor._inside.recorder)


@contextmanager
def locked(journal: Journal) -> Iterator[Connection]:
    """Its connection, while nothing else uses it."""
    with journal.database._lock:
        yield connection_of(journal)


@contextmanager
def at_work(writer: Writer) -> Iterator[None]:
    """Hold its lock, as its own thread does for moments."""
    with writer._wake:
        yield


def beat(recorder: Recorder) -> None:
    """Renew the leases it holds, now."""
    recorder._renew_leases()


def notebook_of(verifier: Verifier) -> Notebook:
    """Where it notes sizes and checksums."""
    return verifier.collaborators.notebook


# The service


def http_auth(reader: StatusReader) -> object:
    """What its HTTP client authenticates with."""
    return reader.http._http.auth


def place_of_file(folder: Path, name: str) -> Path:
    """Where a download puts a file of this name."""
    return download._inside(folder, name)


# Telemetry


@contextmanager
def hiding_a_secret() -> Iterator[None]:
    """Hold the lock of the redactor, as a thread does that adds a secret."""
    with redaction._known._lock:
        yield


def open_streams(streams: Streams) -> list[Any]:
    """The streams that somebody still holds."""
    return list(streams._open)


def logged_events() -> set[str]:
    """The events that have a level in the log; another cannot be emitted."""
    return set(events._LEVELS)


def count_runs_anew(patch: pytest.MonkeyPatch) -> None:
    """For one test, metrics of its own runs alone: a process reports all that it has had."""
    patch.setattr(metrics, "RUNS", type(metrics.RUNS)())


def provider_of_instruments() -> MeterProvider:
    """The provider that our metrics are recorded with."""
    return metrics._instruments().provider


def meter_provider() -> MeterProvider | None:
    """The provider that the process has set."""
    return meters._METER_PROVIDER


def set_tracer_provider(patch: pytest.MonkeyPatch, provider: TracerProvider) -> None:
    """Set it for one test: OpenTelemetry lets a process do so once."""
    patch.setattr(trace, "_TRACER_PROVIDER", provider)


def set_meter_provider(patch: pytest.MonkeyPatch, provider: MeterProvider) -> None:
    """Set it for one test."""
    patch.setattr(meters, "_METER_PROVIDER", provider)


def forget_providers(patch: pytest.MonkeyPatch) -> None:
    """For one test a process in which nobody has set a provider yet."""
    patch.setattr(trace, "_TRACER_PROVIDER", None)
    patch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    patch.setattr(meters, "_METER_PROVIDER", None)
    patch.setattr(meters, "_METER_PROVIDER_SET_ONCE", Once())
    # It hands on to the provider that is set, for ever.
    patch.setattr(meters, "_PROXY_METER_PROVIDER", meters._ProxyMeterProvider())


def may_export_inside_its_lock(exporter: InMemorySpanExporter) -> None:
    """Make its lock one that a thread may take again.

    A request of the SDK's that is collected ends its span, wherever the collector strikes: inside
    this lock as well.
    """
    exporter._lock = threading.RLock()  # type: ignore[assignment]  # a lock all the same


# The command line


def doctor_status(*, real: bool | None) -> int:
    """The exit status of ``doctor`` for what it found."""
    return doctor._STATUS[real]


def doctor_for_people(report: Report) -> str:
    """What it prints."""
    return doctor._as_text(report)


def doctor_for_machines(report: Report) -> dict[str, Any]:
    """What it prints under ``--json``."""
    return doctor._as_json(report)


# The local server


def folder_of(server: LocalTinker) -> Path:
    """Where it stores checkpoints."""
    root = server._root
    assert root is not None
    return root


def requests_open(group: object) -> int:
    """How many tasks of an anyio task group are not done."""
    return len(group._tasks)  # type: ignore[attr-defined]  # of the group that runs on asyncio


def newest_rule(server: LocalTinker) -> FaultRule:
    """The fault injected last."""
    return server._book._entries[-1].rule


# Patience that is no setting: how long something waits, or how much it takes at once


def set_beat_s(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """How often a lease is renewed."""
    patch.setattr("tinker_recovery.journal.lease.HEARTBEAT_S", seconds)


def set_claim_s(
    patch: pytest.MonkeyPatch, *, settle: float, look: float, beat: float | None = None
) -> None:
    """How late a service may show a claim, how often one that waits looks, and heartbeats."""
    patch.setattr("tinker_recovery.service.claims.SETTLE_S", settle)
    patch.setattr("tinker_recovery.service.claims.LOOK_S", look)
    if beat is not None:
        patch.setattr("tinker_recovery.service.claims.BEAT_S", beat)


def sessions_of_runs(server: LocalTinker) -> dict[str, str]:
    """Its sessions in which a run was made, so without what was only on standby."""
    runs = {run.partition(":train:")[0] for run in server.runs()}
    return {each: state for each, state in server.sessions().items() if each in runs}


def training_sessions(server: LocalTinker) -> dict[str, str]:
    """Its sessions by id, with their states, without the claims on runs and their notes."""
    facts = server._ask(lambda host: host.state.sessions._facts)
    return {
        each: state
        for each, state in server.sessions().items()
        if not {CLAIM, NOTE} & facts[each]["user_metadata"].keys()
    }


def open_claims(server: LocalTinker) -> list[str]:
    """The sessions of the claims that it takes for active."""
    facts = server._ask(lambda host: host.state.sessions._facts)
    return [
        each
        for each, state in server.sessions().items()
        if state == "active" and CLAIM in facts[each]["user_metadata"]
    ]


def be_on_machine(name: str) -> None:
    """Have this process take itself for one on a machine of this name, to its end."""
    holder._machine = lambda: name  # type: ignore[assignment]  # called all the same
    socket.gethostname = lambda: name


def set_quiet_s(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """How long the service has to hear nothing of a run before it is taken for abandoned."""
    patch.setattr("tinker_recovery.run.open.QUIET_S", seconds)


def set_notice_s(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """After how long a client that is being created is mentioned in the log."""
    patch.setattr("tinker_recovery.service.at_work.NOTICE_S", seconds)


def set_open_again_s(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """After how long another session is opened in the place of one that does not open."""
    patch.setattr("tinker_recovery.service.backend.OPEN_AGAIN_S", seconds)


def give_up_a_session_within(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """How long a session that is given up may take to open, and then to be closed."""
    patch.setattr("tinker_recovery.service.closing.ABANDON_S", seconds)


def set_standby_after_s(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """How long after a run's start the standby session is opened."""
    patch.setattr("tinker_recovery.service.backend.STANDBY_AFTER_S", seconds)


def open_standby(supervisor: Supervisor) -> None:
    """Open the standby session now."""
    supervisor._backend._open_standby()


def set_retention_gap_s(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """The time between two rounds of retention."""
    patch.setattr("tinker_recovery.retention.loop.GAP_S", seconds)


def set_sample_s(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """How far apart the metrics are that are recorded."""
    patch.setattr("tinker_recovery.journal.recorder.SAMPLE_S", seconds)


def set_write_retries_s(patch: pytest.MonkeyPatch, seconds: tuple[float, ...]) -> None:
    """How long the journal waits before it writes again."""
    patch.setattr("tinker_recovery.journal.writer.RETRY_S", seconds)


def set_doctor_rounds(patch: pytest.MonkeyPatch, rounds: int) -> None:
    """How often ``doctor`` tries again with more steps."""
    patch.setattr("tinker_recovery.doctor.examination.ROUNDS", rounds)


def set_failed_pages(patch: pytest.MonkeyPatch, *, size: int, pages: int) -> None:
    """How many failed sessions a page holds, and how many pages one look reads."""
    patch.setattr(status, "FAILED_PAGE", size)
    patch.setattr(poller, "_FAILED_PAGES", pages)


def set_file_chunk(patch: pytest.MonkeyPatch, size_bytes: int) -> None:
    """How much of a checkpoint's file is read at once."""
    patch.setattr("tinker_recovery.checkpoints.files.CHUNK", size_bytes)


def know_canaries(known: CheckpointState, noted: Mapping[str, str], *, prompt: str) -> None:
    """What the journal would have of the canary's answers to this prompt, by path."""
    known.noted_canaries.update(noted)
    known._noted_prompts.update(dict.fromkeys(noted, prompt))


def crash_between_accept_and_connection(server: LocalTinker, for_s: float) -> socket.socket:
    """A connection that the server's loop has accepted, and made nothing of yet, as it crashes."""
    made: Future[socket.socket] = Future()

    def connect(host: Host) -> None:
        loop = asyncio.get_running_loop()
        # Two turns of the loop later, it has accepted, and not yet run the task that it made.
        loop.call_soon(loop.call_soon, host.crash, for_s)
        made.set_result(socket.create_connection(host._address))

    server._ask(connect)
    return made.result()


def in_a_run(supervisor: Supervisor) -> Collaborators:
    """What its runs work with; only inside the Supervisor."""
    return supervisor._inside.collaborators


def spare_of(supervisor: Supervisor, run: str) -> tuple[str, str] | None:
    """The checkpoint its spare client is loaded from, and that client's Tinker run, if it is."""
    spares = in_a_run(supervisor).spares
    spare = None if spares is None else spares._spares.get(run)
    if spare is None or spare.busy or spare.loaded is None or spare.connection is None:
        return None
    return spare.loaded, spare.connection.run_id
