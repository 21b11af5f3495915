"""A service made up here, and a run whose checkpoints at it are looked after."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
from made import LINEAGE, NOW, record, segment
from pydantic import SecretStr

from tinker_recovery import CheckpointPolicy, RecoveryEvent, RecoveryPolicy
from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Segment,
    WeightsFacts,
    checkpoint_metadata,
)
from tinker_recovery.clock import Clock
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.retention.collector import CollectionResult, Collector
from tinker_recovery.service import Endpoint, StatusReader, TinkerBackend
from tinker_recovery.telemetry import EventSink

URL = "http://127.0.0.1:1"
START_S = NOW.timestamp()


class World:
    """A service, its clock, and a run with checkpoints at it."""

    name, lineage = "r", LINEAGE
    weights = WeightsFacts("m", 8)

    def __init__(self, *steps: int, policy: CheckpointPolicy | None = None, **changes: Any) -> None:
        self.now_s = START_S
        self.lease: tuple[int, int] | None = None
        self.slept: list[float] = []
        self.stored: dict[str, dict[str, Any]] = {}
        self.deletions: list[str] = []
        """The paths that were asked to be deleted."""
        self.lifetimes: list[tuple[str, int | None]] = []
        """The lifetimes that were asked for."""
        self.listings: list[str] = []
        """The Tinker runs that were listed, one for each request."""
        self.ignores_lifetimes = False
        self.ahead_s: int | None = None
        """How far its clock is ahead of ours; None if it does not say."""
        self.on_weights: Callable[[str], object] = lambda _: None
        self.rank: dict[str, int] = {}
        self.weights_status: dict[str, int] = {}
        """What is answered in place of what the weights are."""
        self.on_delete: Callable[[str], int] = lambda _: 200
        self.on_ttl: Callable[[str], int] = lambda _: 200
        self.checkpoints = CheckpointState("r")
        self.segments: list[Segment] = [segment("a")]
        self.protected: dict[str, str] = {}
        self.pending: set[str] = set()
        self.recovering = False
        self.events: list[RecoveryEvent] = []
        self.policy = policy or CheckpointPolicy(
            **{"save_best": False, "keep_last": 1, "max_deletes_per_s": 1e6, **changes}
        )
        for step in steps:
            self.save(step)

    def save(
        self,
        step: int,
        run: str = "a",
        *,
        parent: str | None = None,
        by: Any = "schedule",
        lives_s: float | None = None,
        metrics: dict[str, float] | None = None,
    ) -> str:
        made = record(step, run)
        ends = None if lives_s is None else (NOW + timedelta(seconds=lives_s)).isoformat()
        self.stored[made.path] = {
            "checkpoint_id": f"weights/{step}",
            "checkpoint_type": "training",
            "time": (made.time - timedelta(hours=1)).isoformat(),  # not ahead of its clock
            "tinker_path": made.path,
            "size_bytes": 10 * step,
            "expires_at": ends,
            "user_metadata": checkpoint_metadata(
                step=step,
                lineage=LINEAGE,
                attempt=run,
                parent=parent,
                saved_by=by,
                metrics=metrics or {},
            ),
        }
        return made.path

    def is_pending(self, made: CheckpointRecord) -> bool:
        return made.path in self.pending

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def _answer(self, request: httpx.Request) -> httpx.Response:
        parts = request.url.path.removeprefix("/api/v1/").split("/")
        if parts[-1] == "weights_info":
            where = str(httpx.Response(200, content=request.content).json()["tinker_path"])
            self.on_weights(where)
            said = {"base_model": "m", "is_lora": True, "lora_rank": self.rank.get(where, 8)}
            return httpx.Response(self.weights_status.get(where, 200), json=said)
        if request.method == "DELETE":
            where = f"tinker://{parts[1]}/{parts[3]}/{parts[4]}"
            self.deletions.append(where)
            if (status := self.on_delete(where)) < 300:
                self.stored.pop(where, None)
            return httpx.Response(status, json={})
        if request.method == "PUT":
            where = f"tinker://{parts[1]}/{parts[3]}/{parts[4]}"
            ttl = httpx.Response(200, content=request.content).json()["ttl_seconds"]
            self.lifetimes.append((where, ttl))
            if (status := self.on_ttl(where)) < 300:
                ends = None if ttl is None else NOW + timedelta(seconds=self.now_s - START_S + ttl)
                if self.ignores_lifetimes:
                    return httpx.Response(status, json={})
                self.stored[where]["expires_at"] = None if ends is None else ends.isoformat()
            return httpx.Response(status, json={})
        if parts[-1] != "checkpoints":
            return httpx.Response(200, json={})
        self.listings.append(parts[1])
        mine = [each for where, each in self.stored.items() if f"//{parts[1]}/" in where]
        date = (
            None
            if self.ahead_s is None
            else format_datetime(
                datetime.fromtimestamp(self.now_s + self.ahead_s, UTC), usegmt=True
            )
        )
        headers = {} if date is None else {"Date": date}
        return httpx.Response(200, json={"checkpoints": mine}, headers=headers)

    @asynccontextmanager
    async def collaborators(self) -> AsyncIterator[Collaborators]:
        clock = Clock(
            monotonic=lambda: self.now_s - START_S, wall=lambda: self.now_s, sleep=self._sleep
        )
        self.journal = Journal(None, service=URL)
        async with (
            StatusReader(
                Endpoint(URL, SecretStr("tml-x")),
                transport=httpx.MockTransport(self._answer),
                wall=lambda: self.now_s,
            ) as reader,
            Notebook(self.journal) as self.notebook,
        ):
            yield Collaborators(
                RecoveryPolicy(checkpoints=self.policy),
                TinkerBackend(),
                reader,
                self.notebook,
                EventSink(self.events.append),
                clock,
            )

    @asynccontextmanager
    async def collector(self, **more: Any) -> AsyncIterator[Collector]:
        async with self.collaborators() as collaborators:
            yield Collector(collaborators, **more)

    async def collect(self, **more: Any) -> CollectionResult:
        async with self.collector(**more) as collector:
            return await collector.collect(self)

    def steps(self) -> list[int]:
        return sorted(int(where.rpartition("/")[2]) for where in self.stored)

    def said(self, name: str) -> list[RecoveryEvent]:
        return [event for event in self.events if event.name == name]
