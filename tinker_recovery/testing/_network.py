"""A network between a client and a server on this machine: round trips, handshakes, loss, jitter.

A proxy that passes bytes on in their order, late. What a service 100 ms away costs is mostly the
number of round trips, which beside a server on the same machine does not show.
"""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

HANDSHAKES = 2
"""Round trips before the first request of a connection gets through: one of TCP, one of TLS 1.3."""

RESENT_S = 0.2
"""What a lost packet costs besides a round trip: TCP sends it again no sooner (RFC 6298)."""

_CHUNK = 65_536


class Network:
    """A network to one server: ``async with Network(server.base_url, rtt_s=0.1) as far:``.

    Clients take ``far.base_url`` for the server's. Runs in a thread of its own. Leaving it breaks
    off every connection.

    Args:
        base_url: The server, by ``http``.
        rtt_s: Seconds of a round trip.
        handshakes: Whether a new connection takes the round trips of TCP and TLS before its first
            request gets through. There is no encryption, so their CPU time is not in it.
        jitter_s: The most seconds that a packet is late besides; drawn for each, never overtaking.
        loss: The share of packets that are lost, from 0 up to 1, and sent again by TCP.
        seed: Of what is drawn.

    Raises:
        ValueError: A value is out of its range.
    """

    def __init__(
        self,
        base_url: str,
        *,
        rtt_s: float = 0.1,
        handshakes: bool = True,
        jitter_s: float = 0.0,
        loss: float = 0.0,
        seed: int = 0,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"base_url={base_url!r} is not allowed: use http://HOST:PORT")
        for name, value in (("rtt_s", rtt_s), ("jitter_s", jitter_s)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r} is not allowed: it has to be 0 or more seconds")
        if not 0 <= loss < 1:
            raise ValueError(f"loss={loss!r} is not allowed: it has to be from 0 up to 1")
        self.base_url = ""
        """Where clients connect to; known once it is entered."""
        self.connections = 0
        """How many connections there have been."""
        self._server = parts.hostname, parts.port or 80
        self._rtt_s = rtt_s
        self._shake_s = HANDSHAKES * rtt_s if handshakes else 0.0
        self._jitter_s = jitter_s
        self._loss = loss
        self._chance = random.Random(seed)  # noqa: S311 - a network's weather is no secret
        self._thread: threading.Thread | None = None
        # asyncio itself holds the task of a connection only while the client's half is open.
        self._connected: set[asyncio.Task[None] | None] = set()
        self._running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._running.set_running_or_notify_cancel()

    async def __aenter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("this Network was entered before: make a new one")
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._main(),), name="network", daemon=True
        )
        self._thread.start()
        with anyio.CancelScope(shield=True):
            await asyncio.wrap_future(self._running)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            loop, stop = await asyncio.wrap_future(self._running)
            loop.call_soon_threadsafe(stop.set)
            if self._thread is not None:
                await anyio.to_thread.run_sync(self._thread.join)

    async def _main(self) -> None:
        stop = asyncio.Event()
        try:
            server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        except BaseException as error:
            self._running.set_exception(error)
            raise
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._running.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        server.close()  # asyncio.run() cancels the connections, and waits for them

    async def _connect(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        self.connections += 1
        connected = asyncio.current_task()
        self._connected.add(connected)
        try:
            await self._join(client, reply)
        finally:
            self._connected.discard(connected)

    async def _join(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        ready_at = asyncio.get_running_loop().time() + self._shake_s
        try:
            server, request = await asyncio.open_connection(*self._server)
        except OSError:
            reply.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(client, request, ready_at))
                group.create_task(self._pass_on(server, reply, ready_at))
        except* (OSError, asyncio.CancelledError):
            # One end broke off, and so does the other; or this is the end, of which asyncio's
            # server would log that its task was cancelled.
            pass
        finally:
            request.transport.abort()
            reply.transport.abort()

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, ready_at: float
    ) -> None:
        """Pass bytes on in one direction until their source ends, each packet in its time."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def arrive() -> None:
            while True:
                at, packet = await under_way.get()
                await asyncio.sleep(at - loop.time())
                if not packet:
                    if sink.can_write_eof():
                        sink.write_eof()
                    return
                sink.write(packet)
                await sink.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(arrive())
            at = 0.0
            while True:
                packet = await source.read(_CHUNK)
                at = max(at, max(ready_at, loop.time()) + self._late_s())
                under_way.put_nowait((at, packet))
                if not packet:
                    return

    def _late_s(self) -> float:
        late_s = self._rtt_s / 2 + self._jitter_s * self._chance.random()
        while self._chance.random() < self._loss:
            late_s += RESENT_S + self._rtt_s
        return late_s
