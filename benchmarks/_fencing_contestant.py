"""A process of the fencing benchmark without a Supervisor: it claims runs, and trains them.

Each line that it hears is a JSON object: ``name`` of the run, ``on_held`` and ``steps``. It says
``ready``, and for each run ``held``, ``trains`` (with the Tinker run), ``step``, and at last
``done``, ``refused`` (by which host), ``lost`` (to which host) or ``failed``.
"""

from __future__ import annotations

import json
import os
from multiprocessing.connection import Connection
from typing import Any

import anyio
from _fencing_machine import BEAT_S
from _fencing_processes import Line
from pydantic import SecretStr

from tinker_recovery.clock import SYSTEM_CLOCK
from tinker_recovery.errors import RunHeld, StatusError, StatusRefused
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service.claim_line import Claimant
from tinker_recovery.service.claim_sessions import ClaimSessions
from tinker_recovery.service.claims import Claim, Claims
from tinker_recovery.service.heartbeats import Heartbeats, TaskHeartbeats

STEP_S = 0.02
GONE = 410


class Contestant:
    """What a process does with a run it has claimed."""

    def __init__(
        self, line: Line, reader: StatusReader, claims: Claims, heartbeats: Heartbeats
    ) -> None:
        self._say = line.say
        self._http = reader.http
        self._claims = claims
        self._heartbeats = heartbeats

    async def play(self, name: str, on_held: Any, steps: int) -> None:
        """Claim a run, train it, and release it."""
        try:
            claim = await self._claims.enter(name, on_held=on_held)
        except RunHeld as held:
            self._say("refused", host=held.host)
            return
        if not isinstance(claim, Claim):
            self._say("failed", why=claim.why)
            return
        self._say("held")
        try:
            await self._train(claim, steps)
            self._say("done")
        except StatusError as error:
            if error.status_code == GONE and not await claim.still_held():
                await self._say_lost(claim)
            else:
                self._say("failed", why=str(error))
        finally:
            await claim.release()

    async def _say_lost(self, claim: Claim) -> None:
        holder = await claim.holder_now()
        self._say("lost", host=holder.host if holder else "")

    async def _train(self, claim: Claim, steps: int) -> None:
        session = await self._claims.sessions.open("training", {})
        if not await claim.announce(session):
            raise StatusRefused("the claim is gone", status_code=GONE)
        end = self._heartbeats.start(session, lambda: None)
        try:
            await self._steps(session, steps)
        finally:
            end()
        await self._claims.sessions.finish(session, "success", "done")

    async def _steps(self, session: str, steps: int) -> None:
        body = {"session_id": session, "model_seq_id": 0, "base_model": "b"}
        made = await self._result("create_model", {**body, "lora_config": {"rank": 4, "seed": 1}})
        run = made["model_id"]
        self._say("trains", run=run)
        for number in range(1, steps + 1):
            adam = {"learning_rate": 0.05}
            await self._result(
                "optim_step", {"model_id": run, "seq_id": number, "adam_params": adam}
            )
            self._say("step")
            await anyio.sleep(STEP_S)

    async def _result(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        accepted = await self._http.ask("POST", path, dict, json=body)
        asked = {"request_id": accepted["request_id"]}
        while True:
            reply: dict[str, Any] = await self._http.ask(
                "POST", "retrieve_future", dict, json=asked
            )
            if reply.get("type") != "try_again":
                return reply


def main(connection: Connection, host: str, base_url: str, api_key: str, settle_s: float) -> None:
    """A process's main."""
    anyio.run(_play, Line(connection), host, Endpoint(base_url, SecretStr(api_key)), settle_s)


async def _play(line: Line, host: str, endpoint: Endpoint, settle_s: float) -> None:
    """Play what is asked for until there is no more."""
    async with StatusReader(endpoint) as reader, anyio.create_task_group() as group:
        heartbeats = TaskHeartbeats(ClaimSessions(reader.http), group, SYSTEM_CLOCK, BEAT_S)
        claims = Claims(
            reader.http,
            Claimant(host, os.getpid(), "", f"machine of {host}", ""),
            is_dead=lambda _: False,
            heartbeats=heartbeats,
            clock=SYSTEM_CLOCK,
            settle_s=settle_s,
            beat_s=BEAT_S,
            look_s=BEAT_S / 2,
        )
        contestant = Contestant(line, reader, claims, heartbeats)
        line.say("ready")
        while asked := await line.heard():
            await contestant.play(**json.loads(asked))
        group.cancel_scope.cancel()
