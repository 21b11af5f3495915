"""The processes of the fencing benchmark: forked from one that has read the SDK already.

Each is a process of its own, of which nothing is shared with the others but the server. It says
lines of JSON, with the ``event`` and when it was by the monotonic clock, which all processes of a
machine share; and it can be given lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

START_S = 120.0
"""The first one waits until the SDK is read."""

FORKED = multiprocessing.get_context("forkserver")
PRELOADED = ["_fencing_contestant", "_fencing_supervisor"]

Said = dict[str, Any]


class Line:
    """A process's own end of its line to the benchmark."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rest = b""

    def say(self, event: str, **more: object) -> None:
        """Report an event; in one write, so that a process that is stopped leaves none in part."""
        said = {"event": event, "at_s": time.monotonic(), **more}
        os.write(self._connection.fileno(), json.dumps(said).encode() + b"\n")

    async def heard(self, *, blocks: bool = False) -> str:
        """The next line from the benchmark; empty once there is none."""
        while b"\n" not in self._rest:
            if not blocks:
                await anyio.wait_readable(self._connection.fileno())
            more = os.read(self._connection.fileno(), 4096)
            if not more:
                return ""
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


class Process:
    """A process as the benchmark sees it.

    Attributes:
        host: Its machine.
        said: All that it has said.
    """

    def __init__(
        self, host: str, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.host = host
        self.said: list[Said] = []
        self._pid = pid
        self._reader = reader
        self._writer = writer
        self._changed = anyio.Event()
        self._over = False
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                self.said.append(json.loads(line))
                self._wake()
        self._over = True
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def when(self, event: str, *, after: int = 0) -> Said | None:
        """The first event of that name, from the place ``after`` on."""
        return next((said for said in self.said[after:] if said["event"] == event), None)

    def count(self, event: str) -> int:
        """How often it has said that."""
        return sum(said["event"] == event for said in self.said)

    async def until(
        self, *events: str, within_s: float, after: int = 0, times: int = 1
    ) -> Said | None:
        """Wait for one of these events; None if it ends before, or the time is over."""
        with anyio.move_on_after(within_s):
            while True:
                found = [said for said in self.said[after:] if said["event"] in events]
                if len(found) >= times:
                    return found[times - 1]
                if self._over:
                    return None
                await self._changed.wait()
        return None

    async def gone(self, within_s: float) -> bool:
        """Wait for its end; whether that came in time."""
        with anyio.move_on_after(within_s):
            while not self._over:
                await self._changed.wait()
        return self._over

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over

    def tell(self, line: str) -> None:
        """Give it a line."""
        self._writer.write(line.encode() + b"\n")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still lives."""
        if not self._over:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    async def aclose(self) -> None:
        """Kill it."""
        self.send(signal.SIGKILL)
        self._writer.close()
        await self.gone(10.0)
        self._listening.cancel()


def prepare() -> None:
    """To be called before the first process is begun."""
    here = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, before]))
    os.environ["TINKER_TELEMETRY"] = "0"
    FORKED.set_forkserver_preload(PRELOADED)


@contextlib.asynccontextmanager
async def process(main: Callable[..., None], host: str, *given: object) -> AsyncIterator[Process]:
    """A process that calls ``main(connection, host, *given)``; killed in the end."""
    ours, its = FORKED.Pipe(duplex=True)
    child = FORKED.Process(target=main, args=(its, host, *given), daemon=True)
    with anyio.fail_after(START_S):
        await anyio.to_thread.run_sync(child.start, limiter=_one_at_a_time())
    its.close()
    line = socket.socket(fileno=os.dup(ours.fileno()))
    ours.close()
    reader, writer = await asyncio.open_connection(sock=line)
    begun = Process(host, child.pid or 0, reader, writer)
    try:
        yield begun
    finally:
        with anyio.CancelScope(shield=True):
            await begun.aclose()
            await anyio.to_thread.run_sync(child.join, 10.0)


_limiters: list[anyio.CapacityLimiter] = []


def _one_at_a_time() -> anyio.CapacityLimiter:
    # multiprocessing is not made for several threads that begin processes at once.
    if not _limiters:
        _limiters.append(anyio.CapacityLimiter(1))
    return _limiters[0]


def progress(text: str) -> None:
    """On stderr."""
    print(text, file=sys.stderr, flush=True)
