"""What else a service does: seeds, names, metadata, routes; each tried in sessions of its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import anyio
import tinker
from tinker import types

from tinker_recovery.checkpoints.canary import Answer, answer_of, distance
from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.doctor.comparison import Diagnosis
from tinker_recovery.doctor.examination import PROBE, ExamPlan, one_step, results
from tinker_recovery.doctor.facts import (
    CANNOT_TELL,
    FAILED,
    NOT_TRIED,
    Fact,
    fact,
    noise_of,
    restores,
    seed,
    short,
)
from tinker_recovery.doctor.fencing import try_fencing
from tinker_recovery.errors import DeadlineExceeded, StatusError
from tinker_recovery.service import Connection, FromBaseModel, StatusReader, TinkerBackend
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.missing_routes import NO_SUCH_ROUTE, is_missing
from tinker_recovery.service.routes import route
from tinker_recovery.service.status import session_id_of
from tinker_recovery.service.temporary import TTL_S, opened, stored

ASKED = 4
"""How often a run is asked the same, to measure the noise of its answers."""

RATE = 10.0
"""The learning rate of a trial, in that of the plan: seeds have to lead apart."""

_NOTE = {"doctor": "kept"}


async def try_out(
    plan: ExamPlan,
    diagnosis: Diagnosis,
    *,
    backend: TinkerBackend,
    reader: StatusReader,
    progress: Callable[[str], object] = lambda _: None,
    clock: Clock = SYSTEM_CLOCK,
) -> tuple[Fact, ...]:
    """What a service does, as far as it can be tried.

    Opens three sessions, trains a few steps in each, and opens up to four in which nothing is
    trained. On every way out, cancellation included, what it stored is deleted and its sessions are
    finished. What fails is a fact of its own, and no error.

    Args:
        plan: As for :func:`examine`; ``timeout_s`` is the deadline of all trials.
        diagnosis: What the examination found.
        backend: Makes clients.
        reader: Reads the service's status.
        progress: Called with each phase, in words.
        clock: For the waits of claims.

    Raises:
        DeadlineExceeded: It took longer than ``plan.timeout_s``.
        Exception: Creating or training a run failed.
    """
    trials = _Trials(plan, backend, reader, CheckpointCalls(reader.http), progress, clock)
    try:
        with anyio.fail_after(plan.timeout_s):
            return (*restores(diagnosis), *await trials.run())
    except TimeoutError as error:
        if isinstance(error, DeadlineExceeded):
            raise
        raise DeadlineExceeded("trying out the service", plan.timeout_s) from error


@dataclass(frozen=True, slots=True)
class _Trials:
    plan: ExamPlan
    backend: TinkerBackend
    reader: StatusReader
    calls: CheckpointCalls
    progress: Callable[[str], object]
    clock: Clock

    async def run(self) -> list[Fact]:
        self.progress("trying seeds: a run")
        async with self._opened(0) as one:
            answers = await self._trained(one)
            self.progress("trying names, sizes, export and search")
            stored_facts = await self._stored(one)
            export = await self._export(one)
            search = await self._search(one.run_id)
            corrupted = await self._corrupted(one.run_id)
            self.progress("trying two claims on one name")
            # Last of all that is asked of a client: its session is finished.
            trainer = await try_fencing(
                self.reader.http,
                one.training,
                session_id_of(one.run_id),
                clock=self.clock,
                close_s=self.plan.close_s,
            )
        self.progress("trying seeds: another run of the same seed")
        async with self._opened(0) as same:
            again = await self._trained(same)
            finish = await self._finish(same.run_id)
        self.progress("trying seeds: a run of another seed; saving with metadata")
        async with self._opened(1) as third:
            other = await self._trained(third)
            metadata = await self._metadata(third)
        noise = max(
            distance(a, b) for asked in (answers, again, other) for a, b in combinations(asked, 2)
        )
        apart = distance(answers[0], again[0]), distance(answers[0], other[0])
        return [
            seed(*apart, noise),
            metadata,
            *stored_facts,
            export,
            finish,
            search,
            trainer,
            corrupted,
            noise_of(noise),
        ]

    def _opened(self, seed_: int) -> AbstractAsyncContextManager[Connection]:
        return opened(
            FromBaseModel(self.plan.base_model, {"rank": self.plan.rank, "seed": seed_}),
            self.backend,
            purpose="an experiment: what does the service do?",
            deadline_s=self.plan.timeout_s,
            close_s=self.plan.close_s,
        )

    async def _trained(self, connection: Connection) -> list[Answer]:
        """The answers after the same few steps."""
        training = connection.training
        for step in range(self.plan.steps):
            await results(one_step(training, step, RATE * self.plan.learning_rate))
        asked = [training.forward(PROBE, "cross_entropy") for _ in range(ASKED)]
        return [answer_of(each) for each in await results(asked)]

    def _kept(
        self, saving: Future[Any], connection: Connection, name: str, *, kind: str = "weights"
    ) -> AbstractAsyncContextManager[str]:
        """What is saved, deleted on the way out."""
        return stored(
            saving,
            f"tinker://{connection.run_id}/{kind}/{name}",
            self.calls,
            deadline_s=self.plan.timeout_s,
            close_s=self.plan.close_s,
        )

    async def _listed(self, run_id: str, path: str) -> types.Checkpoint | None:
        """A checkpoint as the service lists it, with nothing of ours filled in."""
        found = await self.reader.http.ask(
            "GET",
            route("training_runs", run_id, "checkpoints"),
            types.CheckpointsListResponse.model_validate,
        )
        return next((each for each in found.checkpoints if each.tinker_path == path), None)

    async def _stored(self, connection: Connection) -> list[Fact]:
        """Names, sizes and overwriting."""
        training, name = connection.training, _name()
        saving = training.save_state(name, ttl_seconds=TTL_S).future()
        async with self._kept(saving, connection, name) as path:
            listed = await self._listed(connection.run_id, path)
            named = "yes" if path.endswith(f"/{name}") else "no"
            sized = CANNOT_TELL
            if listed is not None:
                sized = "no" if listed.size_bytes is None else "yes"
            over, detail = "replaces", ""
            try:
                again = training.save_state(name, ttl_seconds=TTL_S, overwrite=True)
                (saved,) = await results([again])
                if str(saved.path) != path:
                    over, detail = FAILED, f"stored as {saved.path}"
                    await self.calls.remove(str(saved.path), deadline_s=self.plan.close_s)
            except tinker.TinkerError as error:
                over, detail = "refused", short(error)
        return [
            fact("user's names kept", named, "" if named == "yes" else path),
            fact("overwriting a name", over, detail),
            fact("sizes listed", sized),
        ]

    async def _export(self, connection: Connection) -> Fact:
        name = _name()
        try:
            saving = connection.training.save_weights_external(name, ttl_seconds=TTL_S).future()
            async with self._kept(saving, connection, name, kind="external_weights") as path:
                await self.calls.signed_files(path)
        except (tinker.TinkerError, StatusError) as error:
            gone = is_missing(error) or getattr(error, "status_code", None) in NO_SUCH_ROUTE
            return fact("export", "missing" if gone else FAILED, "" if gone else short(error))
        return fact("export", "yes")

    async def _search(self, run_id: str) -> Fact:
        try:
            await self.reader.session_over(run_id)
        except StatusError as error:
            gone = error.status_code in NO_SUCH_ROUTE
            found = "missing" if gone else FAILED
            return fact("search of sessions", found, "" if gone else short(error))
        return fact("search of sessions", "yes")

    async def _corrupted(self, run_id: str) -> Fact:
        """Only a run that breaks shows whether the service says so; the field is there or not."""
        try:
            run = await self.reader.run(run_id)
        except StatusError as error:
            return fact("corrupted", FAILED, short(error))
        if run.corrupted:
            return fact("corrupted", "reported", "of a run that nothing was wrong with")
        there = "corrupted" in run.model_fields_set
        return fact("corrupted", NOT_TRIED if there else "not reported")

    async def _finish(self, run_id: str) -> Fact:
        said = await self.reader.http.send(
            "POST",
            route("sessions", session_id_of(run_id), "finish"),
            json={"reason": {"type": "success"}, "detail": "an experiment ended"},
        )
        if said is not None and 200 <= said < 300:  # noqa: PLR2004 - HTTP's own numbers
            return fact("finish", "yes")
        detail = "no answer" if said is None else f"HTTP {said}"
        return fact("finish", "missing" if said in NO_SUCH_ROUTE else FAILED, detail)

    async def _metadata(self, connection: Connection) -> Fact:
        """Last of all that is asked of a client: after a refusal it is unusable."""
        name, training = _name(), connection.training
        try:
            saving = training.save_state(name, ttl_seconds=TTL_S, user_metadata=_NOTE).future()
            async with self._kept(saving, connection, name) as path:
                listed = await self._listed(connection.run_id, path)
        except (tinker.BadRequestError, tinker.UnprocessableEntityError) as error:
            return fact("metadata of saves", "refused", short(error))
        except (tinker.TinkerError, StatusError) as error:
            return fact("metadata of saves", FAILED, short(error))
        if listed is None:
            return fact("metadata of saves", CANNOT_TELL, f"{path} is not listed")
        kept = _NOTE.items() <= (listed.user_metadata or {}).items()
        return fact("metadata of saves", "kept" if kept else "forgotten")


def _name() -> str:
    return f"doctor-{secrets.token_hex(4)}"
