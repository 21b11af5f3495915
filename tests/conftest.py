"""What every test gets: no telemetry of the SDK's, and a check that nothing of ours is left."""

from __future__ import annotations

import asyncio
import atexit
import gc
import inspect
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import certifi
import preloaded
import pytest
import pytest_asyncio
import tinker
from hurrying import hurry
from hypothesis import settings
from inspection import (
    count_runs_anew,
    forget_closed_rest_clients,
    may_export_inside_its_lock,
    meter_provider,
    set_claim_s,
    set_tracer_provider,
    signal_handlers,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from poisoned_run import leave_a_journal
from sdk_loops import a_service
from tinker.lib.internal_client_holder import _internal_client_holder_thread_singleton as sdk
from virtual import World
from webhook import Hook, webhook
from wire import Wire, wired

from tinker_recovery.service import retrying
from tinker_recovery.testing import LocalTinker

# How long an example takes says more of the machine and who shares it than of the code.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a shell. The processes that tests send Ctrl-C to would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Or each of the many processes that tests start compiles all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def _trust_little() -> None:
    """Have each client of the SDK read one certificate, not all: nothing here is encrypted.

    Reading them takes a third of the time of making a client, and the tests make a thousand.
    """
    folder = tempfile.TemporaryDirectory(prefix="one-certificate-")
    atexit.register(folder.cleanup)
    end = "-----END CERTIFICATE-----\n"
    file = Path(folder.name) / "cert.pem"
    file.write_text(certifi.contents().partition(end)[0] + end)
    os.environ["SSL_CERT_FILE"] = str(file)
    os.environ.pop("SSL_CERT_DIR", None)


_trust_little()

# The SDK's one loop thread serves the process and never ends; it is not ours to stop.
SDK_LOOP = sdk.get_loop()


@pytest.fixture(autouse=True)
def _no_sdk_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")


@pytest.fixture(autouse=True)
def _own_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def _a_service_that_lists_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_claim_s(monkeypatch, settle=0.02, look=0.02)


@pytest.hookimpl
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: much of a test's time is spent waiting for a server."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl
def pytest_collection_finish() -> None:
    """What is imported by now stays: the collection after each test need not walk it again."""
    gc.collect()
    gc.freeze()
    preloaded.install()


@pytest.hookimpl
def pytest_unconfigure() -> None:
    """Nothing of ours is left."""
    preloaded.uninstall()


def _settled(count: Callable[[], int], expected: int, limit_s: float = 3.0) -> int:
    """The count once it is down to what is expected, or after a limit."""
    deadline = time.monotonic() + limit_s
    while (now := count()) > expected and time.monotonic() < deadline:
        time.sleep(0.005)
    return now


def _threads() -> list[str]:
    # Resolvers of the SDK's loop live as long as that loop, and its loop for custom losses as long
    # as the process; pytest-timeout's watch ends by itself.
    resolvers: set[threading.Thread] = getattr(
        getattr(SDK_LOOP, "_default_executor", None), "_threads", set()
    )
    ours = (thread.name for thread in threading.enumerate() if thread not in resolvers)
    return sorted(
        name for name in ours if not name.startswith(("pytest_timeout", "tinker-custom-loss"))
    )


def sdk_tasks() -> list[asyncio.Task[object]]:
    """The tasks on the SDK's loop that are not done: futures polling, turns waiting, heartbeats."""

    async def look() -> list[asyncio.Task[object]]:
        me = asyncio.current_task()
        return [task for task in asyncio.all_tasks() if task is not me]

    return asyncio.run_coroutine_threadsafe(look(), SDK_LOOP).result()


def _is_async(item: pytest.Item) -> bool:
    return inspect.iscoroutinefunction(getattr(item, "obj", None))


@pytest.hookimpl
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tasks of every async test counted; the others need no event loop for that."""
    for item in items:
        if _is_async(item) and isinstance(item, pytest.Function):
            item.fixturenames.insert(0, "no_task_is_left")


_BEFORE = pytest.StashKey[tuple[int, int, list[object], object]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    meters = meter_provider()
    item.stash[_BEFORE] = len(_threads()), len(sdk_tasks()), signal_handlers(), meters
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """After each test: no thread, task on the SDK's loop, signal handler or provider is left.

    A hook and not a fixture, so that it looks after the test's event loop is closed, and idle
    worker threads count as well.
    """
    yield
    forget_closed_rest_clients()
    threads, tasks, handlers, meters = item.stash[_BEFORE]
    if _is_async(item) or len(_threads()) > threads:
        # What survives this one need not be walked again after the next.
        gc.collect()
        gc.freeze()
    left_threads = _settled(lambda: len(_threads()), threads)
    assert left_threads <= threads, f"threads left: {_threads()}"
    left_tasks = _settled(lambda: len(sdk_tasks()), tasks)
    assert left_tasks <= tasks, f"tasks left on the SDK's loop: {sdk_tasks()}"
    assert signal_handlers() == handlers, "signal handlers left"
    assert meter_provider() is meters, "a MeterProvider left"


@pytest_asyncio.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """After each async test: no task on its loop that was not there before."""
    before = set(asyncio.all_tasks())
    yield
    left = {task for task in asyncio.all_tasks() if not task.done()} - before
    left -= {asyncio.current_task()}
    assert not left, f"tasks left: {left}"


@pytest.fixture(autouse=True)
def _own_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics report what is under way in this test, and not what another has made up."""
    count_runs_anew(monkeypatch)


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """As before: commands set them for their process, and some run in this one."""
    loggers = [logging.getLogger(name) for name in ("tinker", "tinker_recovery")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def handlers() -> Iterator[list[object]]:
    """Those of signals, SIGINT's first, from before the test; they are there again after it."""
    there = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield list(there.values())
    for number, handler in there.items():
        signal.signal(number, handler)


@pytest.fixture
def hook() -> Iterator[Hook]:
    """A webhook on loopback."""
    with webhook() as hook:
        yield hook


@pytest_asyncio.fixture
async def local(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalTinker]:
    """A local Tinker server, and the environment pointing to it."""
    async with LocalTinker() as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        yield server
        open_sessions = [key for key, state in server.sessions().items() if state == "active"]
        assert not open_sessions, f"sessions left open at the service: {open_sessions}"


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A server with options of its own, which the environment points to."""

    @asynccontextmanager
    async def serve(**options: Any) -> AsyncIterator[LocalTinker]:
        async with LocalTinker(**options) as server:
            monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
            monkeypatch.setenv("TINKER_API_KEY", server.api_key)
            yield server

    return serve


@pytest_asyncio.fixture
async def server() -> AsyncIterator[LocalTinker]:
    """A local Tinker server that the environment does not point to, and that is asked often."""
    async with LocalTinker(long_poll_s=0.02) as server:
        yield server


@pytest_asyncio.fixture
async def wire(server: LocalTinker) -> AsyncIterator[Wire]:
    """A session at the server, without the SDK."""
    async with wired(server) as wire:
        yield wire


@pytest_asyncio.fixture
async def service(server: LocalTinker) -> AsyncIterator[tinker.ServiceClient]:
    """A ServiceClient of the server."""
    async with a_service(server) as service:
        yield service


@pytest.fixture
def no_waiting_between_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of ours are tried as often as ever, and nothing waits in between."""
    monkeypatch.setattr(retrying, "waits", False)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a journal, and of its events as lines, that one run left; only to be read."""
    folder = tmp_path_factory.mktemp("written")
    asyncio.run(leave_a_journal(folder))
    return folder


@pytest.fixture
def world() -> World:
    """A clock of its own and children that do as they are told, for a supervision test."""
    return World()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Every span that ended, from a provider of the test's own: a process can set only one."""
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    may_export_inside_its_lock(exporter)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    set_tracer_provider(monkeypatch, provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own patience of 300 s (an hour, for 402) passes in a moment."""
    hurry(monkeypatch)
