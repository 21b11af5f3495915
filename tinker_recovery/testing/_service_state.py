"""The service behind the routes: its runs, which execute requests in order, and their futures.

Belongs to one event loop; nothing in it is safe to call from another thread.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from tinker_recovery.testing._checkpoints import Checkpoints
from tinker_recovery.testing._engine_faults import apply_effect, find_faults
from tinker_recovery.testing._fault_book import FaultBook
from tinker_recovery.testing._faults import FaultRule
from tinker_recovery.testing._ledger import Ledger
from tinker_recovery.testing._model import Noise
from tinker_recovery.testing._options import Restart, ServerOptions
from tinker_recovery.testing._runs import (
    Promise,
    Reply,
    RequestError,
    ServiceError,
    ServiceRun,
    session_of,
)
from tinker_recovery.testing._samplers import CLIENT_SEQ_IDS, Sampler, Samplers
from tinker_recovery.testing._sessions import Sessions
from tinker_recovery.testing._store import DamagedCheckpoint, Store
from tinker_recovery.testing.actions import Request

logger = logging.getLogger(__name__)

_SAVES: dict[str, Request] = {
    "weights": "save_weights",
    "sampler_weights": "save_weights_for_sampler",
    "external_weights": "save_weights_external",
}


class ServiceState:
    """All state of the service."""

    def __init__(
        self,
        store: Store,
        faults: FaultBook,
        options: ServerOptions,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._faults = faults
        self._options = options
        self._duration_s: dict[Request, float] = {
            "forward_backward": options.step_s,
            "save_weights": options.save_s,
            "save_weights_for_sampler": options.save_s,
            "save_weights_external": options.save_s,
            "load_weights": options.load_s,
        }
        self.sessions = Sessions(store, wall, faults.clock, options)
        rng = np.random.default_rng(options.chance)
        self.ledger = Ledger(wall)
        noise = Noise(options.answer_noise, options.gradient_noise, rng)
        self.checkpoints = Checkpoints(
            store,
            wall,
            lenient=options.lenient,
            noise=noise,
            clock=faults.clock,
            listing_delay_s=options.listing_delay_s,
            note=self.ledger.note,
        )
        self.wall = wall
        """Seconds since the epoch, for expiry and what is listed."""
        self.requests: Counter[str] = Counter()
        self._runs: dict[str, ServiceRun] = {}
        self.samplers = Samplers(self.checkpoints, lambda run_id: self.run(run_id).facts)
        self._tasks: set[asyncio.Task[None]] = set()
        self._reset()
        for facts in store.runs():
            self._revive(facts, options.restart)

    def _reset(self) -> None:
        # Request ids from before a restart must not name a new request.
        self._life = secrets.token_hex(3)
        self._promises: dict[str, Promise] = {}
        self._creations: dict[str, str] = {}
        self._saves: dict[str, Promise] = {}
        self._lost_saves: set[tuple[str, int]] = set()
        self._samples: dict[tuple[str, int], str] = {}
        self.samplers.clear()

    # Runs

    def run(self, run_id: str) -> ServiceRun:
        """A run by its id; raises ServiceError 404 if there is none."""
        if run_id not in self._runs:
            raise ServiceError(404, f"no training run {run_id!r}")
        return self._runs[run_id]

    def parent_of(self, run_id: str) -> str | None:
        """The run whose checkpoint another was begun from; None if there is none."""
        run = self._runs.get(run_id)
        path = None if run is None else run.facts.get("parent")
        return None if path is None else str(path).removeprefix("tinker://").partition("/")[0]

    def runs(self) -> list[ServiceRun]:
        """All runs, newest first."""
        return list(reversed(self._runs.values()))

    def create_run(
        self,
        session: str,
        model_seq_id: int,
        *,
        base_model: str,
        rank: int,
        seed: int,
        user_metadata: dict[str, Any] | None,
    ) -> str:
        """Queue the creation of a run; returns the request's id."""
        run_id = self._new_run_id(session, model_seq_id)
        if self._options.seed_ignored:
            seed = random.Random(f"{self._options.chance} {len(self._runs)}").randrange(2**31)  # noqa: S311 - not a secret
        facts = {"base_model": base_model, "rank": rank, "seed": seed, "parent": None}

        def make(_: list[FaultRule]) -> Reply:
            self._add_run({"run_id": run_id, "user_metadata": user_metadata, **facts})
            return {"model_id": run_id, "type": "create_model"}

        return self._create("create_model", run_id, 0, make)

    def load_run(
        self,
        session: str,
        model_seq_id: int,
        *,
        path: str,
        optimizer: bool,
        user_metadata: dict[str, Any] | None,
    ) -> str:
        """Queue the creation of a run from a checkpoint; returns the request's id."""
        run_id = self._new_run_id(session, model_seq_id)

        def make(effects: list[FaultRule]) -> Reply:
            actions = {rule.action for rule in effects}
            facts = {
                "run_id": run_id,
                "user_metadata": user_metadata,
                "parent": path,
                "seed": 0,
                "optimizer": optimizer
                and not self._options.cold_optimizer
                and "cold_optimizer" not in actions,
                "perturbed": "wrong_restore" in actions,
            }
            try:
                origin = self.run(self.checkpoints.find(path)["run_id"]).facts
                self.ledger.note("checkpoint_read", path)
                facts |= {"base_model": origin["base_model"], "rank": origin["rank"]}
                self._add_run(facts)
            except ServiceError as error:
                missing = f"cannot load {path}: {error}"
                raise RequestError(
                    f"Adapter {path} not found" if self._options.server_category else missing
                ) from error
            except DamagedCheckpoint as error:
                if not self._options.server_category:
                    raise RequestError(f"cannot load {path}: {error}") from error
                # The run is there, and corrupted from the start.
                facts |= {"corrupted": True, "last_request_time": self._now()}
                self._store.save_run(run_id, facts)
                self._start(ServiceRun(facts, None))
                raise RequestError(f"Error while deserializing header: {error}") from error
            return {"path": path, "type": "load_weights"}

        return self._create("load_weights", run_id, self.steps_in(path), make)

    def steps_in(self, path: str) -> int:
        """Optimizer steps in a checkpoint; 0 if there is none of that path."""
        try:
            return int(self.checkpoints.find(path)["steps"])
        except ServiceError:
            return 0

    def _new_run_id(self, session: str, model_seq_id: int) -> str:
        self.sessions.check_active(session)
        return f"{session}:train:{model_seq_id}"

    def _add_run(self, facts: dict[str, Any]) -> None:
        facts = {**facts, "corrupted": False, "last_request_time": self._now()}
        model = self.checkpoints.initial_model(facts)
        self._store.save_run(facts["run_id"], facts)
        self._start(ServiceRun(facts, model))

    def add_runs(self, count: int, *, saved: bool) -> list[str]:
        """Add runs without weights; see :meth:`LocalTinker.add_runs`."""
        added = []
        for _ in range(count):
            facts: dict[str, Any] = {
                "run_id": f"{self.sessions.create(stored=False)}:train:0",
                "base_model": "Qwen/Qwen3-8B",
                "rank": 8,
                "seed": 0,
                "parent": None,
                "user_metadata": None,
                "corrupted": False,
                "last_request_time": self._now(),
            }
            run = self._runs[facts["run_id"]] = ServiceRun(facts, None)
            if saved:
                self._store.save_run(run.run_id, facts)
                model = self.checkpoints.initial_model(facts)
                self.checkpoints.save(run.run_id, "listed", model, ttl_s=None, user_metadata=None)
            added.append(run.run_id)
        return added

    def add_copy(self, session: str, origin: ServiceRun) -> str:
        """Add a run that holds a copied checkpoint and cannot be trained; returns its id."""
        run_id = f"{session}:train:0"
        own = {"run_id": run_id, "parent": None, "user_metadata": None, "corrupted": False}
        now = {"last_request_time": self._now(), "copy": True, "unloaded": True}
        facts = {**origin.facts, **own, **now}
        self._store.save_run(run_id, facts)
        self._start(ServiceRun(facts, None))
        return run_id

    def corrupt(self, run_ids: Sequence[str]) -> None:
        """Mark these runs as corrupted."""
        for run_id in run_ids:
            self.run(run_id).facts["corrupted"] = True

    def delete_run(self, run_id: str) -> None:
        """Remove a run: it is no longer listed, and requests for it are answered 404."""
        self.run(run_id).stop()
        del self._runs[run_id]

    def _start(self, run: ServiceRun) -> None:
        before = self._runs.get(run.run_id)
        if before is not None:
            before.stop()
        self._runs[run.run_id] = run
        if run.model is not None:
            run.worker = asyncio.create_task(self._work(run))

    def restart(self, mode: Restart) -> None:
        """Lose live weights and futures, as a server that is started again."""
        self._reset()
        for task in self._tasks:
            task.cancel()
        for run in list(self._runs.values()):
            self._revive(run.facts, mode)

    def _revive(self, facts: dict[str, Any], mode: Restart) -> None:
        model = None
        if facts.get("copy"):
            self._start(ServiceRun(facts, None))
            return
        if mode == "corrupted":
            facts = {**facts, "corrupted": True}
        elif mode == "rollback" and not facts["corrupted"]:
            model = self.checkpoints.rolled_back_model(facts)
        self._start(ServiceRun({**facts, "unloaded": mode == "unloaded"}, model, next_seq=None))

    def _now(self) -> str:
        return datetime.fromtimestamp(self.wall(), UTC).isoformat()

    def close(self) -> None:
        """Stop the worker of every run."""
        for run in self._runs.values():
            run.stop()

    # Requests and their futures

    def promise(self, request_id: str) -> Promise:
        """The future of a request; one from before a restart has failed."""
        if request_id in self._promises:
            return self._promises[request_id]
        left, _, run_id = request_id.partition("@")
        if left.startswith(f"request-{self._life}-") or run_id not in self._runs:
            raise ServiceError(404, f"no request {request_id!r}")
        promise = Promise("optim_step", run_id)
        lost = self._runs[run_id].model is None
        reason = "is not loaded" if lost else "was restarted: the request is lost"
        promise.fail(f"model {run_id} {reason}", "server")
        return promise

    def poll_facts(self, request_id: str) -> tuple[str, int, str]:
        """ServiceRun id, step and kind of the request that a poll asks for."""
        promise = self.promise(request_id)
        step = promise.step
        if step is None:
            step = self.run(promise.run_id).step_for(promise.seq_id)
        return promise.run_id, step, promise.request

    def _promise(self, promise: Promise) -> str:
        request_id = f"request-{self._life}-{len(self._promises)}@{promise.run_id}"
        self._promises[request_id] = promise
        return request_id

    def _create(
        self, request: Request, run_id: str, step: int, make: Callable[[list[FaultRule]], Reply]
    ) -> str:
        if run_id in self._creations:
            return self._creations[run_id]
        promise = Promise(request, run_id, step=step)
        self._creations[run_id] = self._promise(promise)
        self._begin(promise, make)
        return self._creations[run_id]

    def sample(self, sampler: Sampler, seq_id: int, execute: Callable[[], Reply]) -> str:
        """Begin a sampling request, once per seq_id; returns the request's id."""
        key = sampler.sampler_id, seq_id
        if key not in self._samples:
            promise = Promise("asample", sampler.sampler_id, seq_id, step=sampler.weights.steps)
            request_id = self._samples[key] = self._promise(promise)
            finished = sampler.finished(seq_id // CLIENT_SEQ_IDS)
            promise.when_done = lambda: finished.add(request_id, promise.reply)
            self._begin(promise, lambda _: execute())
        return self._samples[key]

    def _begin(self, promise: Promise, make: Callable[[list[FaultRule]], Reply]) -> None:
        """Execute a request that waits for no other."""

        async def work() -> None:
            await asyncio.sleep(self._duration_s.get(promise.request, 0.0))
            rule, effects = await find_faults(self._faults, promise)
            if rule is not None and rule.action == "fail_session":
                self._fail_session_by(rule, promise)
            if rule is None or rule.action == "gone":
                self._execute(promise, functools.partial(make, effects), gone=rule is not None)
            elif rule.action != "hang" and not rule.quiet:
                promise.fail(rule.message, rule.category)

        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def submit(
        self, run_id: str, seq_id: int, request: Request, execute: Callable[[ServiceRun], Reply]
    ) -> str:
        """Queue a request of a run, once per seq_id; returns the request's id.

        Raises:
            ServiceError: 400 for a seq_id below 1, or a run that the option ``restart`` left
                unloaded; 404 for no such run; 410 if its session has finished or failed.
        """
        run = self.run(run_id)
        if seq_id in run.requests:
            return run.requests[seq_id]
        if seq_id < 1:
            raise ServiceError(400, f"seq_id={seq_id!r} is not allowed: 1 or more")
        self.sessions.check_active(run.session)
        if run.facts.get("unloaded"):
            raise ServiceError(400, f"model {run_id} is not loaded")
        promise = Promise(request, run_id, seq_id)
        request_id = run.requests[seq_id] = self._promise(promise)
        run.facts["last_request_time"] = self._now()
        if run.worker is None:
            promise.fail(f"model {run_id} is not loaded", "server")
        else:
            run.queue(promise, execute)
        return request_id

    async def _work(self, run: ServiceRun) -> None:
        """Execute the run's requests in the order of their seq_ids."""
        while True:
            promise, execute = await run.next()
            run.current = promise
            promise.step = run.steps
            if duration_s := self._duration_s.get(promise.request):
                await asyncio.sleep(duration_s)
            rule = run.poisoned_by
            if rule is None:
                rule, effects = await find_faults(self._faults, promise, run)
                for effect in effects:
                    apply_effect(run, effect, self.checkpoints)
            if rule is None or rule.action == "gone":
                self._execute(promise, functools.partial(execute, run), gone=rule is not None)
            else:
                await self._fail(run, promise, rule)

    async def _fail(self, run: ServiceRun, promise: Promise, rule: FaultRule) -> None:
        if rule.action == "poison" and run.poisoned_by is None:
            run.poisoned_by = rule
            run.facts["corrupted"] = True
            self._store.save_run(run.run_id, run.facts)
        if rule.action == "fail_session":
            self._fail_session_by(rule, promise)
        if rule.action == "hang" or rule.quiet:
            await asyncio.Event().wait()
        promise.fail(rule.message, rule.category)

    # Sessions that fail

    def runs_of(self, session: str) -> list[ServiceRun]:
        """The runs of a session, newest first."""
        return [run for run in self.runs() if run.session == session]

    def fail_session(
        self, session: str, message: str, category: str, reason: dict[str, str] | None = None
    ) -> None:
        """Fail a session: pending and later requests of its runs and samplers fail.

        ``reason`` is the cause that the service reports; by default the newest run.
        """
        runs = self.runs_of(session)
        if reason is None:
            run_id = runs[0].run_id if runs else ""
            reason = {"type": "training_run", "training_run_id": run_id}
        self.sessions.fail(session, message, category, reason)
        for run in runs:
            run.fail_pending(f"session {session} has failed: {message}", category)
        for request_id in self._samples.values():
            promise = self._promises[request_id]
            if session_of(promise.run_id) == session:
                promise.fail(f"session {session} has failed: {message}", category)

    def _fail_session_by(self, rule: FaultRule, promise: Promise) -> None:
        promise.fail(rule.message, rule.category)
        request_id = next(key for key, value in self._promises.items() if value is promise)
        reason = {"type": "request", "request_id": request_id, "request_type": promise.request}
        session = session_of(promise.run_id)
        self.fail_session(session, rule.message, rule.category, reason)

    # Saves

    def submit_save(
        self,
        run: ServiceRun,
        seq_id: int,
        name: str,
        execute: Callable[[ServiceRun], Reply],
        *,
        kind: Literal["weights", "sampler_weights", "external_weights"] = "weights",
        overwrite: bool = False,
    ) -> str:
        """Queue a save, or an export; see :meth:`submit`.

        Raises:
            ServiceError: Also 400 for a name that is not allowed; 409 if it is taken, by a
                checkpoint or by a queued save, and ``overwrite`` is False.
        """
        if (run.run_id, seq_id) in self._lost_saves:
            raise ServiceError(409, f"a checkpoint named {name!r} exists")
        if seq_id in run.requests:
            return run.requests[seq_id]
        self.checkpoints.check_name(name)
        path = f"tinker://{run.run_id}/{kind}/{name}"
        stored = any(facts["name"] == name for facts in self.checkpoints.of(run.run_id, kind))
        queued = path in self._saves and not self._saves[path].done
        if (stored or queued) and not overwrite:
            raise ServiceError(409, f"a checkpoint named {name!r} exists")
        request_id = self.submit(run.run_id, seq_id, _SAVES[kind], execute)
        self._saves[path] = self._promises[request_id]
        return request_id

    def forget_save(self, run_id: str, seq_id: int) -> None:
        """Answer every retry of this save with 409."""
        self._lost_saves.add((run_id, seq_id))

    def _execute(self, promise: Promise, execute: Callable[[], Reply], *, gone: bool) -> None:
        if promise.done:
            return  # its session failed meanwhile
        try:
            self.sessions.check_not_ended(session_of(promise.run_id))
            promise.set_reply(execute(), gone=gone)
        except RequestError as error:
            promise.fail(error.message, self._category(error.category))
        except ServiceError as error:
            promise.fail(error.message, self._category("user"))
        except Exception as error:
            # A defect or a full disk: the client gets a server error, and the run continues.
            logger.exception("a request failed inside the local server")
            promise.fail(f"internal error: {error!r}", "server")

    def _category(self, category: str) -> str:
        return "server" if self._options.server_category else category
