"""One life of the server on an event loop: its socket, its connections, its outages."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from tinker_recovery.testing.app import TinkerApp
from tinker_recovery.testing.auth import Gate
from tinker_recovery.testing.book import FaultBook
from tinker_recovery.testing.control import Control
from tinker_recovery.testing.engine import ServiceState
from tinker_recovery.testing.options import ServerOptions
from tinker_recovery.testing.store import Store
from tinker_recovery.testing.wire_faults import WireFaults

_LOOK_S = 0.005


class _Server(uvicorn.Server):
    """uvicorn without signals and without its ticking: whoever embeds it decides when it stops.

    Its own loop looks every tenth of a second whether it should stop, and then waits for clients.
    Those of a test server have no claim on a graceful end: what hangs would hang it too.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready: Callable[[], None] = lambda: None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Stop serving; to be called in the server's own loop."""
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        self.ready()
        await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        del sockets  # each belongs to one of the servers
        self.refuse()
        self.abort()

    def refuse(self) -> None:
        """Accept no more connections, until it is started up again."""
        for server in self.servers:
            server.close()

    def abort(self, but: tuple[str, int] | None = None) -> None:
        """End every connection there is, but one client's."""
        for connection in list(self.server_state.connections):
            if but is None or connection.transport.get_extra_info("peername") != but:
                connection.transport.abort()

    def drop(self, client: tuple[str, int] | None) -> None:
        """End the connection of one client, once what was written to it is sent."""
        for connection in list(self.server_state.connections):
            if connection.transport.get_extra_info("peername") == client:
                connection.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        OSError: The address is in use, or not ours.
    """
    # The protocol is named because asyncio turns Nagle's algorithm off only where it is, and with
    # it on every reply waits 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


class Host:
    """A service and its server; belongs to the running event loop.

    Args:
        listener: Where to serve.
        root: Where runs and checkpoints are kept.
        book: What goes wrong.
        options: The server's options.
        wall: Seconds since the epoch, for expiry.
    """

    def __init__(
        self,
        listener: socket.socket,
        root: Path,
        book: FaultBook,
        options: ServerOptions,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.engine = ServiceState(Store(root), book, options, wall)
        self._address: tuple[str, int] = listener.getsockname()
        self._listener = listener
        self._clock = book.clock
        self._refusing = False
        self._ending: asyncio.Task[None] | None = None
        self._wire = WireFaults(book, self.engine, self._drop)
        app = TinkerApp(
            self.engine,
            Gate(options.api_key, jwt=options.jwt),
            self._wire,
            Control(self.engine, book, self),
            long_poll_s=options.long_poll_s,
        )
        self._server = _Server(
            uvicorn.Config(
                app.starlette(),
                log_config=None,
                log_level="critical",
                access_log=False,
                lifespan="off",
                ws="none",
            )
        )

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://{self._address[0]}:{self._address[1]}"

    def _drop(self, client: tuple[str, int] | None) -> None:
        self._server.drop(client)

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop()

    async def serve(self, ready: Callable[[], None]) -> None:
        """Serve until stopped; then end open connections at once and wait for every task.

        Args:
            ready: Called once connections are accepted.
        """
        self._server.ready = ready
        await self._server.serve([self._listener])
        self.engine.close()
        me = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def begin_outage(
        self,
        *,
        status: int | None,
        rollback: bool,
        for_s: float | None = None,
        asker: tuple[str, int] | None = None,
    ) -> None:
        """Take the service down: refuse connections, or answer everything with a status.

        Args:
            status: The status; None to refuse.
            rollback: Whether the service comes back as after a crash, its runs rolled back.
            for_s: Seconds until it comes back by itself; None for :meth:`end_outage`.
            asker: Whose connection is left open, to be answered.
        """
        self._cancel_ending()
        self._wire.outage = status
        if status is None:
            self._refusing = True
            self._server.refuse()
        self._server.abort(asker)
        if rollback:
            self.engine.restart("rollback")
        if for_s is not None:
            self._ending = asyncio.create_task(self._end_in(for_s))

    def _cancel_ending(self) -> None:
        if self._ending is not None and self._ending is not asyncio.current_task():
            self._ending.cancel()
        self._ending = None

    async def _end_in(self, for_s: float) -> None:
        end = self._clock() + for_s
        while self._clock() < end:  # noqa: ASYNC110 - the clock may be a test's own, and sets no event
            await asyncio.sleep(_LOOK_S)
        await self.end_outage()

    async def end_outage(self) -> None:
        """Take the service up again, on the same port; nothing happens if it is up."""
        self._cancel_ending()
        self._wire.outage = None
        if self._refusing:
            self._refusing = False
            await self._server.startup([listen(*self._address)])
