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

from tinker_recovery.testing._checkpoints import StoredCheckpoint
from tinker_recovery.testing._control_routes import check_outage
from tinker_recovery.testing._damage import Damage
from tinker_recovery.testing._fault_book import FaultBook, FiredFault
from tinker_recovery.testing._faults import FaultRule
from tinker_recovery.testing._host import Host, listen
from tinker_recovery.testing._options import Options, ServerOptions
from tinker_recovery.testing._runs import RunState, ServiceError
from tinker_recovery.testing._tokenizer import LocalTokenizer
from tinker_recovery.testing.actions import Category, Request

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RequestStats:
    """How many requests the server received.

    Attributes:
        by_route: By the route's name, ``retrieve_future`` for example.
    """

    by_route: dict[str, int]

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.by_route.values())


class LocalTinker:
    """A Tinker service on this machine, for tests: ``async with LocalTinker() as server:``.

    Runs in a thread with an event loop of its own, so a test that blocks does not block it. All
    methods are safe to call from any thread. Leaving it stops the server at once, even with
    requests pending, and joins the thread.

    Args:
        root: Where runs and checkpoints are kept; by default a folder that is deleted at the end.
        port: Port to listen on, at 127.0.0.1; 0 for a free one.
        faults: Rules; :meth:`inject` adds more.
        wall: Seconds since the epoch, for expiry, the times listed and the Date header.
        clock: Seconds, for ``for_s``, ``after_s`` and ``delay_s``; may be a test's own.
        options: See :class:`~tinker_recovery.testing.Options`.
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
        self._options = ServerOptions.of(**options)
        self.api_key = self._options.api_key
        self.base_url = ""
        """Where it listens; known once it is entered."""
        self.tokenizer = LocalTokenizer()
        """Texts as tokens of the model's vocabulary; it needs no network."""
        self._root = root
        self._port = port
        self._wall = wall
        self._book = FaultBook(clock)
        for rule in faults:
            self._book.add(rule)
        self._temporary: str | None = None
        self._thread: threading.Thread | None = None
        self._running: Future[tuple[asyncio.AbstractEventLoop, Host]] = Future()
        # Running from the start, so that cancelling a task that waits for it does not cancel it.
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
            # __aexit__ is not called if __aenter__ raises.
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
        """Call it in the server's own thread, between two events of its loop."""

        async def call(host: Host) -> _T:
            return question(host)

        return self._run(call)

    def _run(self, work: Callable[[Host], Coroutine[Any, Any, _T]]) -> _T:
        loop, host = self._running.result()
        return asyncio.run_coroutine_threadsafe(work(host), loop).result()

    def service(self) -> tinker.ServiceClient:
        """A new ServiceClient of this server."""
        return tinker.ServiceClient(base_url=self.base_url, api_key=self.api_key)

    def change_key(self, api_key: str, *, revoke: bool = True) -> None:
        """Refuse the key used so far with 401, and take another one, as when a key is rotated.

        Args:
            api_key: The new one; :attr:`api_key` from now on.
            revoke: With ``jwt``, whether the tokens made so far are refused as well.
        """
        self._ask(lambda host: host.auth.change(api_key, revoke=revoke))
        self.api_key = api_key

    # Faults

    def inject(self, rule: FaultRule) -> None:
        """Add a rule."""
        self._book.add(rule)

    def release(self, rule: FaultRule | None = None) -> None:
        """Take back a rule, or all of them; requests held up by a ``pause`` continue."""
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
        """Poison the next run that reaches ``at_step``; see :class:`FaultRule`."""
        self.inject(FaultRule("poison", at_step, request, run, category=category, quiet=quiet))

    def fail_session(
        self,
        session_id: str,
        *,
        message: str = "injected session failure",
        category: Category = "server",
    ) -> None:
        """Fail a session now: pending and later requests of its runs fail."""
        self._ask(lambda host: host.state.fail_session(session_id, message, category))

    def add_runs(self, count: int, *, saved: bool = False) -> list[str]:
        """Add runs that are listed and have no weights; returns their Tinker run ids, oldest first.

        Each is in a session of its own. Thousands cost next to nothing; a restart forgets them.

        Args:
            count: How many.
            saved: Whether each has a checkpoint at step 0 from which it can be loaded.
        """
        return self._ask(lambda host: host.state.add_runs(count, saved=saved))

    def corrupt(self, run_ids: Sequence[str]) -> None:
        """Mark these runs as corrupted."""
        self._ask(lambda host: host.state.corrupt(run_ids))

    def delete_run(self, run_id: str) -> None:
        """Remove a run: it is no longer listed, and requests for it are answered 404."""
        self._ask(lambda host: host.state.delete_run(run_id))

    def outage(
        self, for_s: float, *, status: int | None = None, rollback: bool | None = None
    ) -> None:
        """Begin an outage that ends by itself after ``for_s`` seconds; see :meth:`begin_outage`."""
        check_outage(status, for_s)
        self._ask(lambda host: host.begin_outage(status=status, rollback=rollback, for_s=for_s))

    def begin_outage(self, *, status: int | None = None, rollback: bool | None = None) -> None:
        """Be down until :meth:`end_outage`. Every open connection ends at once.

        Args:
            status: Answer every request with this status; None to refuse connections.
            rollback: As after a crash, every run that was not corrupted silently goes back to its
                last checkpoint, or its beginning, and continues; pending requests have failed. By
                default so with ``restart="rollback"``.

        Raises:
            ValueError: The status is below 400.
        """
        check_outage(status, None)
        self._ask(lambda host: host.begin_outage(status=status, rollback=rollback))

    def crash(self, for_s: float) -> None:
        """Be killed, and started again ``for_s`` seconds later, on the same folder and address.

        Live weights are lost; what becomes of the runs is the option ``restart``.
        """
        self._ask(lambda host: host.crash(for_s))

    def end_outage(self) -> None:
        """End an outage; the address stays the same."""
        self._run(lambda host: host.end_outage())

    def damage(self, path: str, how: Damage) -> None:
        """Damage a stored checkpoint, or export, behind the service's back.

        Loading it then fails; with the option ``lenient``, whatever can be parsed loads.

        Args:
            path: Its ``tinker://`` path.
            how: One of :data:`~tinker_recovery.testing.Damage`.

        Raises:
            ValueError: There is no such checkpoint, or no such damage.
        """
        try:
            self._ask(lambda host: host.state.checkpoints.damage(path, how))
        except ServiceError as error:
            raise ValueError(f"path={path!r} is not allowed: {error}") from error

    def list_as(self, path: str, **fields: object) -> None:
        """List a stored checkpoint with other fields than it has; None leaves one out.

        An unknown ``checkpoint_type``, for example, or an entry without a ``time``.

        Args:
            path: Its ``tinker://`` path.
            fields: Fields of ``tinker.types.Checkpoint`` as they are to be sent.
        """
        self._ask(lambda host: host.state.checkpoints.change(path, listed_as=fields))

    # Observations

    @property
    def fired(self) -> list[FiredFault]:
        """The faults that have struck, oldest first."""
        return self._book.fired()

    @property
    def stats(self) -> RequestStats:
        """The requests so far."""
        return self._ask(lambda host: RequestStats(dict(host.state.requests)))

    def sessions(self) -> dict[str, str]:
        """State by session id.

        ``active``, ``failed``, ``ended`` if its heartbeats stopped, or how its client finished it.
        """
        return self._ask(lambda host: host.state.sessions.states())

    def runs(self) -> list[str]:
        """Every Tinker run id, newest first."""
        return self._ask(lambda host: [run.run_id for run in host.state.runs()])

    def checkpoints(self, run_id: str) -> list[StoredCheckpoint]:
        """The training checkpoints of a run, oldest first."""
        return self._ask(lambda host: host.state.checkpoints.stored(run_id))

    def publish(self, path: str) -> None:
        """Publish a checkpoint, as its owner might."""
        self._ask(lambda host: host.state.checkpoints.change(path, public=True))

    def samplers(self) -> list[str]:
        """The ids of all samplers, oldest first."""
        return self._ask(lambda host: host.state.samplers.ids())

    def expire_sampler(self, sampler_id: str) -> None:
        """Let a sampler expire: its requests are answered 404.

        Raises:
            ValueError: There is no such sampler.
        """
        try:
            self._ask(lambda host: host.state.samplers.expire(sampler_id))
        except ServiceError as error:
            raise ValueError(f"sampler_id={sampler_id!r} is not allowed: {error}") from error

    def run_state(self, run_id: str) -> RunState:
        """The contents of a run."""
        return self._ask(lambda host: host.state.run(run_id).state())


def serve(
    *,
    root: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    ready: Callable[[str], None] = lambda _: None,
    faults: Sequence[FaultRule] = (),
    struck: Callable[[FiredFault], object] = lambda _: None,
    **options: Unpack[Options],
) -> None:
    """Serve in the foreground until SIGINT or SIGTERM. SIGUSR1 ends an outage.

    Args:
        root: Where runs and checkpoints are kept; by default a folder that is deleted at the end.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        ready: Called with the base URL once connections are accepted.
        faults: What is to strike, from the start.
        struck: Called when a rule strikes for the first time.
        options: As for :class:`LocalTinker`.

    Raises:
        OSError: It cannot listen on that address.
    """
    checked = ServerOptions.of(**options)
    listener = listen(host, port)
    with contextlib.ExitStack() as stack:
        if root is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="local-tinker-")))
        asyncio.run(_foreground(listener, root, checked, ready, FaultBook(struck=struck), faults))


async def _foreground(
    listener: socket.socket,
    root: Path,
    options: ServerOptions,
    ready: Callable[[str], None],
    book: FaultBook,
    faults: Sequence[FaultRule],
) -> None:
    import signal  # noqa: PLC0415 - only the foreground has signals

    for rule in faults:
        book.add(rule)
    host = Host(listener, root, book, options)
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
