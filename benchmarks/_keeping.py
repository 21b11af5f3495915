"""Histories of one run's checkpoints at a real server: saved, damaged, expired, deleted.

The collector, the journal and the restore after a fault are real; the history is random. The
process may die between any two writes of the journal, and replies of the service get lost. Two
promises are checked after every action: nothing was deleted that must not be, and once a good
checkpoint existed there is always one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import tinker
from tinker import types

from tinker_recovery import CheckpointPolicy, CheckpointRecord, NoUsableCheckpoint, RecoveryPolicy
from tinker_recovery.checkpoints import Segment, WeightsFacts, checkpoint_metadata
from tinker_recovery.clock import Clock
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.restore import Restore
from tinker_recovery.retention.collector import Collector
from tinker_recovery.service import (
    Connection,
    FromBaseModel,
    Origin,
    Patience,
    StatusReader,
    TinkerBackend,
)
from tinker_recovery.telemetry import EventSink
from tinker_recovery.testing import Damage, FaultRule, LocalTinker

_T = TypeVar("_T")

HOUR_S = 3600.0
LINEAGE = "mine"
DAMAGES: tuple[Damage, ...] = get_args(Damage)
DATA = [
    types.Datum(
        model_input=types.ModelInput.from_ints(list(range(60))),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=list(range(1, 61)), dtype="int64", shape=[60])
        },
    )
]
ORIGIN = FromBaseModel("m", {"rank": 4, "seed": 1})


class Died(BaseException):
    """The process died in the middle of something."""


class Mortal(Notebook):
    """A notebook whose process may die right before or right after a write."""

    def __init__(self, journal: Journal, chance: random.Random) -> None:
        super().__init__(journal)
        self._chance = chance
        self.mortal = False

    async def _do(self, call: Callable[[], _T]) -> _T:
        self._may_die()
        result = await super()._do(call)
        self._may_die()
        return result

    def _may_die(self) -> None:
        if self.mortal and self._chance.random() < 0.04:
            raise Died


@dataclass
class Run:
    """One logical run, as the collector and the restore see it."""

    segments: list[Segment] = field(default_factory=list)
    checkpoints: CheckpointState = field(default_factory=lambda: CheckpointState("sft"))
    protected: dict[str, str] = field(default_factory=dict)
    name: str = "sft"
    lineage: str = LINEAGE
    root: CheckpointRecord | None = None
    origin: Origin | None = ORIGIN
    start_step: int = 0
    recovering: bool = False
    lease: tuple[int, int] | None = None
    weights: WeightsFacts = field(default_factory=WeightsFacts)

    def is_pending(self, record: CheckpointRecord) -> bool:
        """No metric is awaited."""
        del record
        return False


@dataclass
class History:
    """One history, and what happened in it."""

    seed: int
    seen: Counter[str] = field(default_factory=Counter)
    violation: str = ""


class _World:
    def __init__(self, server: LocalTinker, folder: Path, seed: int, wall: list[float]) -> None:
        self.chance = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self._server = server
        self._folder = folder
        self._wall = wall
        self._clock = Clock(wall=lambda: wall[0])
        self._events = EventSink()
        self._backend = TinkerBackend(server.service)
        self._connections: list[Connection] = []
        self._alive: Connection | None = None
        self.step = 0
        self.segments: list[Segment] = []
        self.damaged: set[str] = set()
        self.user: set[str] = set()
        self.pinned: set[str] = set()
        self.public: set[str] = set()
        self.branch: set[str] = set()
        self.steps: dict[str, int] = {}
        self.before: dict[str, Any] = {}
        self._had_good = False
        self.policy = RecoveryPolicy(
            enabled=True,
            checkpoints=CheckpointPolicy(
                keep_last=self.chance.choice([1, 1, 2, 3]),
                save_best=False,
                ttl_s=self.chance.choice([None, 30 * HOUR_S]),
                verify_deep=True,
                max_deletes_per_s=1000.0,
            ),
        )

    async def open(self) -> None:
        """Begin, also after the process has died: everything but the journal is lost."""
        endpoint = await self._backend.endpoint()
        journal = Journal(self._folder / "journal", service=endpoint.base_url)
        self.reader = StatusReader(endpoint)
        self.notebook = Mortal(journal, self.chance)
        # A run's segments are in the journal, too, which is another test's matter.
        self.run = Run(self.segments)
        self.collaborators = Collaborators(
            self.policy, self._backend, self.reader, self.notebook, self._events, self._clock
        )
        self.collector = Collector(self.collaborators)

    async def shut(self) -> None:
        """Release what is open in this process."""
        self.notebook.mortal = False
        await self.reader.aclose()
        await self.notebook.__aexit__(None, None, None)

    async def close(self) -> None:
        """The end of the history."""
        for connection in self._connections:
            await self._backend.close(connection, "success", "", deadline_s=5.0)
        await self.shut()

    # -- what is true ------------------------------------------------------------------------

    def stored(self) -> dict[str, Any]:
        runs = [segment.run_id for segment in self.segments]
        return {each.path: each for run in runs for each in self._server.checkpoints(run)}

    def good(self) -> set[str]:
        """What a recovery could really go back to."""
        return {
            path
            for path in self.stored()
            if path not in self.damaged | self.user and path in self.branch
        }

    def check(self, act: str) -> None:
        """Check what has been deleted since the last check against the promises."""
        now = self.stored()
        for path, was in self.before.items():
            if path in now:
                continue
            if was.expires is not None and was.expires <= self._wall[0]:
                self.seen["expired"] += 1
                continue
            self.seen["deleted"] += 1
            for kind, paths in (
                ("pinned", self.pinned),
                ("published", self.public),
                ("the user's", self.user),
                ("being read", set(self.run.protected)),
                ("the one recovered from", {self.segments[-1].parent}),
            ):
                if path in paths:
                    raise AssertionError(f"{path} was deleted by {act}, and is {kind}")
        if self._had_good and not self.good():
            raise AssertionError(f"no good checkpoint is left after {act}")
        self._had_good = self._had_good or bool(self.good())
        self.before = now

    # -- what happens ------------------------------------------------------------------------

    async def begin(self) -> None:
        await self._go_on(await self._backend.connect(ORIGIN, patience=Patience(20.0)), None)

    async def _go_on(self, connection: Connection, checkpoint: CheckpointRecord | None) -> None:
        attempt = f"a{len(self.segments)}"
        self.step = 0 if checkpoint is None else checkpoint.step
        parent = None if checkpoint is None else checkpoint.path
        self.segments.append(Segment(connection.run_id, attempt, self.step, parent))
        self.branch = {path for path in self.branch if self.steps[path] <= self.step}
        self._connections.append(connection)
        self._alive = connection
        if checkpoint is None:
            # Fresh weights are half zeros, and a tail of zeros would be no damage to them.
            await connection.training.forward_backward(DATA, "cross_entropy")
            await connection.training.optim_step(types.AdamParams(learning_rate=0.1))

    async def save(self) -> None:
        assert self._alive is not None  # noqa: S101 - begun before anything else
        self.step += self.chance.randint(1, 5)
        segment = self.segments[-1]
        kind = self.chance.choices(["schedule", "user", "foreign"], [8, 1, 1])[0]
        name = f"step-{self.step:08d}-{segment.attempt}-{kind}"
        metadata = None
        if kind != "foreign":
            metadata = checkpoint_metadata(
                step=self.step,
                lineage=LINEAGE,
                attempt=segment.attempt,
                parent=segment.parent,
                saved_by="user" if kind == "user" else "schedule",
            )
        ttl = self.policy.checkpoints.ttl_s
        # A service may let checkpoints expire on its own account, too.
        ttl = ttl if ttl is not None else self.chance.choice([None, 100 * HOUR_S])
        saving = self._alive.training.save_state(
            name, ttl_seconds=None if ttl is None else int(ttl), user_metadata=metadata
        )
        path = (await saving).path
        self.steps[path] = self.step
        if kind != "schedule":
            self.user.add(path)
        self.branch.add(path)
        if self.chance.random() < 0.05:
            self._server.publish(path)
            self.public.add(path)
        if self.chance.random() < 0.05:
            await self.notebook.pin(path, "by the user")
            self.pinned.add(path)
        self.seen["saved"] += 1

    async def damage(self) -> None:
        """Damage a file; never that of the last good checkpoint, which nothing can repair."""
        spare = sorted(self.stored().keys() - self.damaged)
        if not spare:
            return
        path = self.chance.choice(spare)
        if not self.good() - {path}:
            return
        how = self.chance.choice(DAMAGES)
        self._server.damage(path, how)
        self.damaged.add(path)
        if how == "no_metadata":
            self.user.add(path)  # nobody can tell whose it is
        self.seen[f"damaged: {how}"] += 1

    async def fault(self) -> None:
        """The run is recovered from a checkpoint, by the real restore."""
        restoration = Restore(self.run, self.collaborators)
        had = self.good()
        try:
            restored = await restoration.restore()
        except NoUsableCheckpoint:
            if had:
                raise AssertionError("a good checkpoint was there, and none was found") from None
            self.seen["given up"] += 1
            raise
        if restored.checkpoint is not None and restored.checkpoint.path in self.damaged:
            raise AssertionError(f"{restored.checkpoint.path} is damaged, and was restored")
        if restored.checkpoint is None and had:
            raise AssertionError("the run started over though a good checkpoint was there")
        await self._go_on(restored.connection, restored.checkpoint)
        self._had_good = bool(self.good())
        self.seen["recovered"] += 1

    async def time_passes(self) -> None:
        self._wall[0] += self.chance.choice([60.0, 700.0, HOUR_S, 6 * HOUR_S])
        self.run.protected = {}
        if self.chance.random() < 0.3:
            free = sorted(self.stored().keys() - set(self.run.checkpoints.being_deleted))
            self.run.protected = dict.fromkeys(free[-1:], "being read")

    async def keep(self) -> None:
        if self.chance.random() < 0.3:
            rules: Sequence[FaultRule] = (
                FaultRule("status", request="delete", status=500, times=1),
                FaultRule("drop", request="delete", times=1),
            )
            self._server.inject(self.chance.choice(rules))
        self.notebook.mortal = True
        try:
            await self.collector.collect(self.run)
            self.seen["collected"] += 1
        except Died:
            self.seen["died"] += 1
            protected = self.run.protected
            await self.shut()
            await self.open()
            self.run.protected = protected
            await self.run.checkpoints.refresh(self.collaborators)
        finally:
            self.notebook.mortal = False
            self._server.release()


async def play(seed: int, folder: Path, acts: int = 24) -> History:
    """One history on a server of its own."""
    history = History(seed)
    wall = [1.8e9]
    async with LocalTinker(root=folder / "server", wall=lambda: wall[0]) as server:
        world = _World(server, folder, seed, wall)
        await world.open()
        try:
            await world.begin()
            idle = 0
            for _ in range(acts):
                act = world.chance.choices(
                    [world.save, world.fault, world.damage, world.time_passes], [8, 1, 2, 4]
                )[0]
                await act()
                world.check(act.__name__)
                # A collector that sleeps for a day is too late to renew anything.
                idle += act == world.time_passes
                if idle >= 2 or world.chance.random() < 0.6:
                    await world.keep()
                    world.check("the collector")
                    idle = 0
        except NoUsableCheckpoint:
            pass  # a clear giving up, with nothing good there
        except (AssertionError, tinker.TinkerError) as error:
            history.violation = f"{error!r} after {dict(world.seen)}"
        finally:
            history.seen = world.seen
            await world.close()
    return history
