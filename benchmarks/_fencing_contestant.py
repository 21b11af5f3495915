"""One process of the fencing benchmark: claims the runs it is asked for, and trains them.

Each line on stdin is a JSON object: ``name`` of the run, ``on_held`` and ``steps``. Each line on
stdout is one as well, with the ``event`` and when it was, by the monotonic clock, which all
processes of a machine share: ``held``, ``trains`` (with the Tinker run), ``step``, and at last
``done``, ``refused`` (by which host), ``lost`` (to which host) or ``failed``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import anyio
import anyio.to_thread
from pydantic import SecretStr

from tinker_recovery.clock import SYSTEM_CLOCK
from tinker_recovery.errors import RunHeld, StatusError, StatusRefused
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service.claim_line import Claimant
from tinker_recovery.service.claim_sessions import ClaimSessions
from tinker_recovery.service.claims import Claim, Claims
from tinker_recovery.service.heartbeats import TaskHeartbeats

STEP_S = 0.02
GONE = 410


def say(event: str, **more: object) -> None:
    """Report an event."""
    print(json.dumps({"event": event, "at_s": time.monotonic(), **more}), flush=True)


class Contestant:
    """What a process does with a run it has claimed."""

    def __init__(self, reader: StatusReader, claims: Claims) -> None:
        self._http = reader.http
        self._claims = claims

    async def play(self, name: str, on_held: Any, steps: int) -> None:
        """Claim a run, train it, and release it."""
        try:
            claim = await self._claims.enter(name, on_held=on_held)
        except RunHeld as held:
            say("refused", host=held.host)
            return
        if not isinstance(claim, Claim):
            say("failed", why=claim.why)
            return
        say("held")
        try:
            await self._train(claim, steps)
            say("done")
        except StatusError as error:
            if error.status_code == GONE and not await claim.still_held():
                await self._say_lost(claim)
            else:
                say("failed", why=str(error))
        finally:
            await claim.release()

    async def _say_lost(self, claim: Claim) -> None:
        holder = await claim.holder_now()
        say("lost", host=holder.host if holder else "")

    async def _train(self, claim: Claim, steps: int) -> None:
        session = await self._claims.sessions.open("training", {})
        if not await claim.announce(session):
            raise StatusRefused("the claim is gone", status_code=GONE)
        body = {"session_id": session, "model_seq_id": 0, "base_model": "b"}
        made = await self._result("create_model", {**body, "lora_config": {"rank": 4, "seed": 1}})
        run = made["model_id"]
        say("trains", run=run)
        for number in range(1, steps + 1):
            adam = {"learning_rate": 0.05}
            await self._result(
                "optim_step", {"model_id": run, "seq_id": number, "adam_params": adam}
            )
            say("step")
            await anyio.sleep(STEP_S)
        await self._claims.sessions.finish(session, "success", "done")

    async def _result(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        accepted = await self._http.ask("POST", path, dict, json=body)
        asked = {"request_id": accepted["request_id"]}
        while True:
            reply: dict[str, Any] = await self._http.ask(
                "POST", "retrieve_future", dict, json=asked
            )
            if reply.get("type") != "try_again":
                return reply


async def main(base_url: str, host: str, settle_s: float, beat_s: float) -> None:
    """Play what is asked for until stdin is closed."""
    endpoint = Endpoint(base_url, SecretStr(os.environ["TINKER_API_KEY"]))
    async with StatusReader(endpoint) as reader, anyio.create_task_group() as group:
        claims = Claims(
            reader.http,
            Claimant(host, os.getpid(), "", f"machine of {host}", ""),
            is_dead=lambda _: False,
            heartbeats=TaskHeartbeats(ClaimSessions(reader.http), group, SYSTEM_CLOCK, beat_s),
            clock=SYSTEM_CLOCK,
            settle_s=settle_s,
            beat_s=beat_s,
            look_s=beat_s / 2,
        )
        contestant = Contestant(reader, claims)
        say("ready")
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            await contestant.play(**json.loads(line))
        group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
