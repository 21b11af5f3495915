"""LocalTinker: the server in a thread of this process, or in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import anyio.to_thread
import tinker

from tinker_recovery.testing.actions import Category, Request
from tinker_recovery.testing.book import FaultBook, FiredFault
from tinker_recovery.testing.checkpoints import StoredCheckpoint
from tinker_recovery.testing.control import check_outage, fail_session
from tinker_recovery.testing.damage import Damage
from tinker_recovery.testing.faults import FaultRule
from tinker_recovery.testing.hosting import Host, listen
from tinker_recovery.testing.options import Options, ServerOptions
from tinker_recovery.testing.runs import RunState, ServiceError

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RequestStats:
    """How often each route was asked.

    Attributes:
        by_route: By the route's name, ``retrieve_future`` for example.
    """

    by_route: dict[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_route.values())


class LocalTinker:
    """A Tinker service on this machine, for tests: ``async with LocalTinker() as server:``.

    Runs in a thread with an event loop of its own, so a test that blocks does not block it. All
    methods are safe to call from any thread. Leaving it stops the server at once, however many
    requests still wait, and joins the thread.

    Args:
        root: Where runs and checkpoints are kept; by default a folder that is deleted at the end.
        port: To listen on, at 127.0.0.1; 0 for a free one.
        faults: What goes wrong; more can be added with :meth:`inject`.
        wall: Seconds since the epoch, for expiry.
        clock: Seconds that ``for_s``, ``after_s`` and ``delay_s`` are counted in; a test may move
            it as it likes.
        options: See :class:`~tinker_recovery.testing.options.Options`: ``api_key``, ``jwt``,
            ``long_poll_s``, ``step_s``, ``save_s``, ``load_s``, ``restart``, ``cold_optimizer``,
            ``lenient``.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        port: int = 0,
        faults: Sequence[FaultRule] = (),
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        **options: Unpack[Options],
    ) -> None:
        self._options = ServerOptions(**options)
        self.api_key = self._options.api_key
        self.base_url = ""
        """Where it listens; known once it is entered."""
        self._root = root
        self._port = port
        self._wall = wall
        self._book = FaultBook(clock)
        for rule in faults:
            self._book.add(rule)
        self._temporary: str | None = None
        self._thread: threading.Thread | None = None
        self._running: Future[tuple[asyncio.AbstractEventLoop, Host]] = Future()
        # From the start, so that whoever is cancelled while waiting for it does not cancel it.
        self._running.set_running_or_notify_cancel()

    async def __aenter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("this LocalTinker was entered before: make a new one")
        if self._root is None:
            self._temporary = tempfile.mkdtemp(prefix="local-tinker-")
            self._root = Path(self._temporary)
        listener = listen("127.0.0.1", self._port)
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._main(listener),), name="local-tinker", daemon=True
        )
        self._thread.start()
        try:
            await asyncio.wrap_future(self._running)
        except asyncio.CancelledError:
            # Nobody is going to leave what was never entered.
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        with anyio.CancelScope(shield=True):
            loop, host = await asyncio.wrap_future(self._running)
            loop.call_soon_threadsafe(host.stop)
            if self._thread is not None:
                await anyio.to_thread.run_sync(self._thread.join)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    async def _main(self, listener: socket.socket) -> None:
        try:
            host = Host(listener, self._root or Path(), self._book, self._options, self._wall)
        except BaseException as error:
            listener.close()
            self._running.set_exception(error)
            raise
        loop = asyncio.get_running_loop()
        await host.serve(lambda: self._running.set_result((loop, host)))

    def _ask(self, question: Callable[[Host], _T]) -> _T:
        """Have the server's own thread look, so that nothing is seen half done."""

        async def look(host: Host) -> _T:
            return question(host)

        return self._have(look)

    def _have(self, work: Callable[[Host], Coroutine[Any, Any, _T]]) -> _T:
        loop, host = self._running.result()
        return asyncio.run_coroutine_threadsafe(work(host), loop).result()

    def service(self) -> tinker.ServiceClient:
        """A fresh ServiceClient of this server."""
        return tinker.ServiceClient(base_url=self.base_url, api_key=self.api_key)

    # What goes wrong

    def inject(self, rule: FaultRule) -> None:
        """Let something go wrong."""
        self._book.add(rule)

    def release(self, rule: FaultRule | None = None) -> None:
        """Take back a rule, or all of them; requests held up by a ``pause`` go on."""
        self._book.release(rule)

    def poison(
        self,
        at_step: int | None = None,
        *,
        run: str | None = None,
        request: Request | None = None,
        category: Category = "server",
        quiet: bool = False,
    ) -> None:
        """Poison the next run that comes to ``at_step``; see :class:`FaultRule`."""
        self.inject(FaultRule("poison", at_step, request, run, category=category, quiet=quiet))

    def fail_session(
        self,
        session_id: str,
        *,
        message: str = "injected session failure",
        category: Category = "server",
    ) -> None:
        """A session fails now: all that is queued in its runs, and every request to come."""
        self._ask(lambda host: fail_session(host.engine, session_id, message, category))

    def add_runs(self, count: int, *, saved: bool = False) -> list[str]:
        """So many runs that are listed and nothing else; their Tinker run ids, oldest first.

        Each is in a session of its own and has no weights, so thousands cost next to nothing. They
        last as long as the server.

        Args:
            count: How many.
            saved: Whether each has a checkpoint it can be loaded from.
        """
        return self._ask(lambda host: host.engine.add_runs(count, saved=saved))

    def corrupt(self, run_ids: Sequence[str]) -> None:
        """These runs are corrupted from now on, and say so when asked."""
        self._ask(lambda host: host.engine.corrupt(run_ids))

    def delete_run(self, run_id: str) -> None:
        """A run is listed no more, and what asks for it is told that there is none."""
        self._ask(lambda host: host.engine.delete_run(run_id))

    def outage(self, for_s: float, *, status: int | None = None, rollback: bool = False) -> None:
        """Begin an outage that ends by itself after ``for_s`` seconds; see :meth:`begin_outage`."""
        check_outage(status, for_s)
        self._ask(lambda host: host.begin_outage(status=status, rollback=rollback, for_s=for_s))

    def begin_outage(self, *, status: int | None = None, rollback: bool = False) -> None:
        """Be down, until :meth:`end_outage`. Every connection there is ends at once.

        Args:
            status: Answer every request with it; None to refuse connections.
            rollback: Come back as after a crash: every run that was not corrupted goes back to its
                last checkpoint, or its beginning, says nothing of it, and carries on; requests not
                yet answered have failed.

        Raises:
            ValueError: The status is none of an error.
        """
        check_outage(status, None)
        self._ask(lambda host: host.begin_outage(status=status, rollback=rollback))

    def end_outage(self) -> None:
        """Be up again, at the same address."""
        self._have(lambda host: host.end_outage())

    def damage(self, path: str, how: Damage) -> None:
        """Let something happen to a stored checkpoint, or export, that the service does not know.

        By itself it refuses to load what was damaged; with the option ``lenient`` it loads whatever
        can be parsed.

        Args:
            path: Its ``tinker://`` path.
            how: One of :data:`~tinker_recovery.testing.damage.Damage`.

        Raises:
            ValueError: There is no such checkpoint, or no such damage.
        """
        try:
            self._ask(lambda host: host.engine.checkpoints.damage(path, how))
        except ServiceError as error:
            raise ValueError(f"path={path!r} is not allowed: {error}") from error

    # What happened

    @property
    def fired(self) -> list[FiredFault]:
        """The faults that have struck, oldest first."""
        return self._book.fired()

    @property
    def stats(self) -> RequestStats:
        """What was asked so far."""
        return self._ask(lambda host: RequestStats(dict(host.engine.requests)))

    def sessions(self) -> dict[str, str]:
        """Every session: ``active``, ``failed``, or how its client finished it."""
        return self._ask(lambda host: host.engine.sessions.states())

    def runs(self) -> list[str]:
        """Every Tinker run id, newest first."""
        return self._ask(lambda host: [run.run_id for run in host.engine.runs()])

    def checkpoints(self, run_id: str) -> list[StoredCheckpoint]:
        """The training checkpoints stored of a run, oldest first."""
        return self._ask(lambda host: host.engine.checkpoints.stored(run_id))

    def publish(self, path: str) -> None:
        """Publish a checkpoint, as its owner might."""
        self._ask(lambda host: host.engine.checkpoints.change(path, public=True))

    def run_state(self, run_id: str) -> RunState:
        """What is inside a run."""
        return self._ask(lambda host: host.engine.state(run_id))


def serve(
    *,
    root: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    ready: Callable[[str], None] = lambda _: None,
    **options: Unpack[Options],
) -> None:
    """Serve in the foreground until SIGINT or SIGTERM. SIGUSR1 ends an outage.

    Args:
        root: Where runs and checkpoints are kept; by default a folder that is deleted at the end.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        ready: Called with the base URL once connections are accepted.
        options: As for :class:`LocalTinker`.

    Raises:
        OSError: The address cannot be listened on.
    """
    checked = ServerOptions(**options)
    listener = listen(host, port)
    with contextlib.ExitStack() as stack:
        if root is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="local-tinker-")))
        asyncio.run(_foreground(listener, root, checked, ready))


async def _foreground(
    listener: socket.socket, root: Path, options: ServerOptions, ready: Callable[[str], None]
) -> None:
    import signal  # noqa: PLC0415 - only the foreground has signals

    host = Host(listener, root, FaultBook(), options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, host.stop)
    ending: set[asyncio.Task[None]] = set()

    def end_outage() -> None:
        task = asyncio.ensure_future(host.end_outage())
        ending.add(task)
        task.add_done_callback(ending.discard)

    loop.add_signal_handler(signal.SIGUSR1, end_outage)
    await host.serve(lambda: ready(host.base_url))
