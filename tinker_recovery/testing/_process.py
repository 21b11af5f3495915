"""LocalTinkerProcess: the server in a process of its own, which can be killed."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import anyio
import anyio.to_thread
import httpx

from tinker_recovery.testing._control_routes import check_outage
from tinker_recovery.testing._fault_book import FiredFault
from tinker_recovery.testing._faults import FaultRule
from tinker_recovery.testing._options import Options, ServerOptions
from tinker_recovery.testing._runs import RunState
from tinker_recovery.testing._server import RequestStats
from tinker_recovery.testing.actions import Category

_START_S = 120.0
_POLL_S = 0.005
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""The server speaks plain HTTP, and reading the system's certificates takes 30 ms per client."""


class LocalTinkerProcess:
    """A Tinker service in another process: ``async with LocalTinkerProcess(root) as server:``.

    Methods without an explanation are as those of :class:`LocalTinker`.

    Args:
        root: Where runs and checkpoints are kept; they survive :meth:`kill` and :meth:`restart`.
        port: Port to listen on, at 127.0.0.1; 0 for a free one.
        options: See :class:`~tinker_recovery.testing.Options`; ``restart`` says what happens to
            runs when it is killed and started again.
    """

    def __init__(self, root: Path, *, port: int = 0, **options: Unpack[Options]) -> None:
        self._options = ServerOptions.of(**options)
        self.api_key = self._options.api_key
        self.base_url = ""
        """Where it listens; known once it is entered, and the same after a restart."""
        self._root = root
        self._port = port
        self._process: subprocess.Popen[str] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end(signal.SIGTERM)

    async def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises:
            RuntimeError: It did not start; its stderr says why.
        """
        command = [sys.executable, "-m", "tinker_recovery.testing", "--root", str(self._root)]
        command += ["--port", str(self._port)]
        # The pipe closes when this process ends, in whatever way, and the server stops.
        command += ["--until-stdin-closes"]
        # The key is passed in the environment: command lines are visible to other users.
        self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - a fork is too quick for a thread; the command is our own
            command,
            stdout=subprocess.PIPE,
            stderr=None,  # a pipe that is never read would fill up and block it
            stdin=subprocess.PIPE,
            text=True,
            # Ctrl-C in a terminal is for what asks the server, which needs it to end in order.
            start_new_session=True,
            env={**os.environ, "LOCAL_TINKER_OPTIONS": json.dumps(asdict(self._options))},
        )
        printed = self._process.stdout
        line = ""
        with anyio.move_on_after(_START_S) as waiting:
            if printed is not None:
                line = await anyio.to_thread.run_sync(printed.readline, abandon_on_cancel=True)
        if not line.startswith("http"):
            await self._end(signal.SIGKILL)
            raise RuntimeError(
                f"the local Tinker server did not start on root={str(self._root)!r}, "
                f"port={self._port}: "
                + (
                    f"it has said nothing for {_START_S:g} s; is this machine busy? Try again"
                    if waiting.cancelled_caught
                    else "see its own message on stderr"
                )
            )
        self.base_url = line.strip()
        self._port = int(self.base_url.rpartition(":")[2])

    async def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        await self._end(signal.SIGKILL)

    async def restart(self) -> None:
        """Kill it, and start it again on the same folder and port."""
        await self.kill()
        await self.start()

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(process.wait)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    async def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        async with self._http() as http:
            reply = await (http.get(path) if body is None else http.post(path, json=body))
        reply.raise_for_status()
        return dict(reply.json())

    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.base_url,
            headers={"X-API-Key": self.api_key},
            timeout=10.0,
            verify=_NO_TLS,
        )

    # Faults

    async def inject(self, rule: FaultRule) -> None:
        """Add a rule."""
        await self._ask("/testing/faults", asdict(rule))

    async def release(self, rule: FaultRule | None = None) -> None:
        """Take back a rule, or all of them."""
        await self._ask("/testing/release", {} if rule is None else asdict(rule))

    async def fail_session(
        self,
        session_id: str,
        *,
        message: str = "injected session failure",
        category: Category = "server",
    ) -> None:
        """Fail a session now."""
        body = {"message": message, "category": category}
        await self._ask(f"/testing/sessions/{session_id}/fail", body)

    async def add_runs(self, count: int, *, saved: bool = False) -> list[str]:
        """Add runs that are listed and have no weights."""
        return list((await self._ask("/testing/runs", {"count": count, "saved": saved}))["runs"])

    async def corrupt(self, run_ids: Sequence[str]) -> None:
        """Mark these runs as corrupted."""
        await self._ask("/testing/runs/corrupt", {"runs": list(run_ids)})

    async def expire_sampler(self, sampler_id: str) -> None:
        """Let a sampler expire."""
        async with self._http() as http:
            reply = await http.delete(f"/testing/samplers/{sampler_id}")
        if reply.status_code == httpx.codes.NOT_FOUND:
            detail = reply.json()["detail"]
            raise ValueError(f"sampler_id={sampler_id!r} is not allowed: {detail}")
        reply.raise_for_status()

    async def outage(
        self, for_s: float, *, status: int | None = None, rollback: bool | None = None
    ) -> None:
        """Begin an outage that ends by itself after ``for_s`` seconds; see :meth:`begin_outage`."""
        check_outage(status, for_s)
        await self._ask("/testing/outage", {"status": status, "rollback": rollback, "for_s": for_s})

    async def begin_outage(
        self, *, status: int | None = None, rollback: bool | None = None
    ) -> None:
        """Be down until :meth:`end_outage`; unlike :meth:`kill`, the live weights are kept."""
        check_outage(status, None)
        await self._ask("/testing/outage", {"status": status, "rollback": rollback})

    async def end_outage(self) -> None:
        """End an outage; returns once the service is up.

        Raises:
            RuntimeError: It was not started, or was killed.
            TimeoutError: It does not come up.
        """
        if self._process is None:
            raise RuntimeError("there is no process: start() it")
        # By a signal, because an outage may refuse connections.
        self._process.send_signal(signal.SIGUSR1)
        with anyio.fail_after(_START_S):
            while not await self._is_up():  # noqa: ASYNC110 - another process sets no event of ours
                await anyio.sleep(_POLL_S)

    async def _is_up(self) -> bool:
        async with self._http() as http:
            try:
                return (await http.get("/api/v1/healthz")).is_success
            except httpx.TransportError:
                return False

    # Observations

    async def fired(self) -> list[FiredFault]:
        """The faults that have struck since it was last started, oldest first."""
        found = (await self._ask("/testing/faults"))["fired"]
        return [FiredFault(**{**fault, "rule": FaultRule(**fault["rule"])}) for fault in found]

    async def run_state(self, run_id: str) -> RunState:
        """The contents of a run."""
        return RunState(**await self._ask(f"/testing/runs/{run_id}/state"))

    async def stats(self) -> RequestStats:
        """The requests since it was last started."""
        return RequestStats((await self._ask("/testing/stats"))["requests"])

    async def sessions(self) -> dict[str, str]:
        """State by session id.

        ``active``, ``failed``, ``ended`` if its heartbeats stopped, or how its client finished it.
        """
        return dict((await self._ask("/testing/stats"))["sessions"])

    async def runs(self) -> list[str]:
        """Every Tinker run id, newest first."""
        return list((await self._ask("/testing/stats"))["runs"])

    async def samplers(self) -> list[str]:
        """The ids of all samplers, oldest first."""
        return list((await self._ask("/testing/stats"))["samplers"])
