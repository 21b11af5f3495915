"""The service and its HTTP server on an event loop: socket, connections, outages."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinker_recovery.testing._app import TinkerApp
from tinker_recovery.testing._auth import Auth
from tinker_recovery.testing._control_routes import ControlRoutes
from tinker_recovery.testing._fault_book import FaultBook
from tinker_recovery.testing._options import ServerOptions
from tinker_recovery.testing._service_state import ServiceState
from tinker_recovery.testing._store import Store
from tinker_recovery.testing._wire_faults import WireFaults

_POLL_S = 0.005
KEEP_ALIVE_S = 60
"""Seconds after which an idle connection is closed, as the load balancers of clouds do by default.
uvicorn's own 5 s would have every poll of a status begin with the handshakes of a new one."""


class _Server(uvicorn.Server):
    """uvicorn without signal handlers and without polling: its owner stops it, at once.

    uvicorn's own loop checks every tenth of a second whether to stop, and then waits for its
    clients, which a request that hangs would keep waiting for ever.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready: Callable[[], None] = lambda: None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Stop serving; call it in the server's own loop."""
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        self.ready()
        await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        del sockets  # self.servers hold them
        self.refuse()

    def refuse(self, but: tuple[str, int] | None = None) -> None:
        """End every connection except one client's, and accept no more until it is started up."""
        loop = asyncio.get_running_loop()
        for server in self.servers:
            for listening in server.sockets:
                loop.remove_reader(listening)
            # asyncio forgets to close what it has accepted and not yet begun to serve by the time
            # its server is closed: that client would wait until the garbage is collected.
            loop.call_soon(server.close)
        loop.call_soon(loop.call_soon, self.abort, but)
        self.abort(but)

    def abort(self, but: tuple[str, int] | None = None) -> None:
        """End every connection except one client's."""
        for connection in list(self.server_state.connections):
            if but is None or connection.transport.get_extra_info("peername") != but:
                connection.transport.abort()

    def drop(self, client: tuple[str, int] | None) -> None:
        """Close the connection of one client, after sending what was written to it."""
        for connection in list(self.server_state.connections):
            if connection.transport.get_extra_info("peername") == client:
                connection.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        OSError: The address is in use, or not ours.
    """
    # asyncio turns Nagle's algorithm off only for sockets with an explicit protocol; with it on,
    # every reply waits 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _dated(app: ASGIApp, wall: Callable[[], float]) -> ASGIApp:
    """An application whose every reply carries the time by ``wall``."""

    async def dated(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                date = (b"date", formatdate(wall(), usegmt=True).encode())
                message = {**message, "headers": [*message["headers"], date]}
            await send(message)

        await app(scope, receive, send_dated)

    return dated


class Host:
    """A service and its server; belongs to the running event loop.

    ``wall`` is seconds since the epoch, for expiry and the Date header.
    """

    def __init__(
        self,
        listener: socket.socket,
        root: Path,
        book: FaultBook,
        options: ServerOptions,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.state = ServiceState(Store(root), book, options, wall)
        book.parent_of = self.state.parent_of
        book.name_of = self.state.checkpoints.name_of
        self._restart = options.restart
        self._address: tuple[str, int] = listener.getsockname()
        self._listener = listener
        self._clock = book.clock
        self._refusing = False
        self._ending: asyncio.Task[None] | None = None
        self._wire = WireFaults(self, book)
        self.auth = Auth(options.api_key, jwt=options.jwt)
        app = TinkerApp(
            self.state,
            self.auth,
            self._wire,
            ControlRoutes(self, book),
            options,
        )
        self._server = _Server(
            uvicorn.Config(
                _dated(app.starlette(), wall),
                log_config=None,
                log_level="critical",
                access_log=False,
                lifespan="off",
                ws="none",
                date_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://{self._address[0]}:{self._address[1]}"

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop()

    def drop(self, client: tuple[str, int] | None) -> None:
        """Close the connection of the client at this address."""
        self._server.drop(client)

    async def serve(self, ready: Callable[[], None]) -> None:
        """Serve until stopped; then end open connections at once and wait for every task.

        ``ready`` is called once connections are accepted.
        """
        self._server.ready = ready
        await self._server.serve([self._listener])
        self.state.close()
        me = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def begin_outage(
        self,
        *,
        status: int | None,
        rollback: bool | None,
        for_s: float | None = None,
        asker: tuple[str, int] | None = None,
    ) -> None:
        """Take the service down: refuse connections, or answer everything with a status.

        Args:
            status: The status; None to refuse.
            rollback: Whether runs are rolled back, as after a crash; None for as after a restart.
            for_s: Seconds until it comes back by itself; None to wait for :meth:`end_outage`.
            asker: The client whose connection is kept, for the reply.
        """
        self._cancel_ending()
        self.state.sessions.end_silent()
        self._wire.outage = status
        if status is None:
            self._refusing = True
            self._server.refuse(asker)
        else:
            self._server.abort(asker)
        if self._restart == "rollback" if rollback is None else rollback:
            self.state.restart("rollback")
        if for_s is not None:
            self._ending = asyncio.create_task(self._end_in(for_s))

    def crash(self, for_s: float) -> None:
        """Go down as if killed, and come back after ``for_s`` seconds as if started again."""
        self.begin_outage(status=None, rollback=False, for_s=for_s)
        self.state.restart(self._restart)

    def _cancel_ending(self) -> None:
        if self._ending is not None and self._ending is not asyncio.current_task():
            self._ending.cancel()
        self._ending = None

    async def _end_in(self, for_s: float) -> None:
        end = self._clock() + for_s
        while self._clock() < end:  # noqa: ASYNC110 - the clock may be a test's own, and sets no event
            await asyncio.sleep(_POLL_S)
        await self.end_outage()

    async def end_outage(self) -> None:
        """Accept requests again, on the same port; has no effect without an outage."""
        self._cancel_ending()
        self._wire.outage = None
        self.state.sessions.forgive_silence()
        if self._refusing:
            self._refusing = False
            await self._server.startup([listen(*self._address)])
