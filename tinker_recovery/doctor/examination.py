"""The experiment: a short run, one checkpoint, three ways to continue from it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import anyio
import tinker
from tinker import types

from tinker_recovery.checkpoints.canary import Answer, answer_of
from tinker_recovery.doctor.comparison import (
    Diagnosis,
    Observations,
    OptimizerFinding,
    Stand,
    diagnose,
)
from tinker_recovery.doctor.facts import Fact
from tinker_recovery.errors import DeadlineExceeded, UsageError
from tinker_recovery.service import (
    Connection,
    FromBaseModel,
    FromCheckpoint,
    Origin,
    StatusReader,
    TinkerBackend,
)
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.temporary import TTL_S, opened, stored
from tinker_recovery.service.waiting import result_of
from tinker_recovery.telemetry.text import counted

ROUNDS = 3
"""Rounds before it is inconclusive; each trains twice as long at four times the rate."""

_PURPOSE = "an experiment: is the optimizer restored?"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamPlan:
    """What to examine, and with what.

    Attributes:
        base_model: The model to train.
        rank: LoRA rank; 1 or more.
        steps: Steps before the checkpoint; 2 or more, as after one the moments contain little.
        learning_rate: The rate in the first round.
        timeout_s: Deadline of the examination, in seconds.
        close_s: Deadline of each part of the cleaning up, which is added to that.

    Raises:
        UsageError: A value is out of range.
    """

    base_model: str
    rank: int = 8
    steps: int = 4
    learning_rate: float = 1e-3
    timeout_s: float = 900.0
    close_s: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("steps", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}={getattr(self, name)!r} is not allowed: {least} or more")
        for name in ("learning_rate", "timeout_s", "close_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}={getattr(self, name)!r} is not allowed: above 0")


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an examination.

    Attributes:
        base_url: The service's address.
        sdk: Version of the tinker SDK.
        base_model: The model that was trained.
        rank: Its LoRA rank.
        steps: Steps before the checkpoint that the diagnosis is based on.
        learning_rate: The rate of those steps.
        diagnosis: What was found.
        facts: What else the service does; empty where it was not tried.
    """

    base_url: str
    sdk: str
    base_model: str
    rank: int
    steps: int
    learning_rate: float
    diagnosis: Diagnosis
    facts: tuple[Fact, ...] = ()


def _batch(step: int) -> list[types.Datum]:
    """A few tokens that differ from step to step: for equal gradients the moments hardly matter."""
    return [_datum([(step * 31 + row * 13 + at * at * 7) % 256 for at in range(17)])
            for row in range(2)]  # fmt: skip


def _datum(tokens: list[int]) -> types.Datum:
    targets = types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1])
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        # Some services demand weights, and have a vocabulary of no more than 256.
        loss_fn_inputs={
            "target_tokens": targets,
            "weights": types.TensorData(
                data=[1.0] * len(targets.data), dtype="float32", shape=targets.shape
            ),
        },
    )


PROBE = [_datum([(row * 41 + at * 11) % 256 for at in range(33)]) for row in range(2)]
"""The batch that every client answers; it is never trained on."""


async def examine(
    plan: ExamPlan,
    *,
    backend: TinkerBackend,
    reader: StatusReader,
    progress: Callable[[str], object] = lambda _: None,
) -> Report:
    """Find out whether the service's restore with optimizer is real.

    Opens four sessions and trains a handful of steps on a hundred tokens; more only while the
    result is inconclusive. On every way out, cancellation included, its checkpoints are deleted and
    its sessions finished.

    Args:
        plan: What to examine.
        backend: Makes clients.
        reader: Reads the service's status. Used first, so that a service out of reach fails early.
        progress: Called with each phase, in words.

    Raises:
        DeadlineExceeded: It took longer than ``plan.timeout_s``.
        StatusError: The service is out of reach, or refuses the API key.
        Exception: Any other error of the service.
    """
    progress("checking that the service answers")
    page = {"limit": 1, "offset": 0}
    await reader.http.ask(
        "GET", "training_runs", types.TrainingRunsResponse.model_validate, params=page
    )
    experiment = _Experiment(plan, backend, CheckpointCalls(reader.http), progress)
    try:
        with anyio.fail_after(plan.timeout_s):
            steps, rate, diagnosis = await experiment.run()
    except TimeoutError as error:
        if isinstance(error, DeadlineExceeded):
            raise
        raise DeadlineExceeded("the examination", plan.timeout_s) from error
    return Report(
        base_url=reader.http.endpoint.base_url,
        sdk=tinker.__version__,
        base_model=plan.base_model,
        rank=plan.rank,
        steps=steps,
        learning_rate=rate,
        diagnosis=diagnosis,
    )


@dataclass(frozen=True, slots=True)
class _Experiment:
    """The rounds, in one live run."""

    plan: ExamPlan
    backend: TinkerBackend
    calls: CheckpointCalls
    progress: Callable[[str], object]

    def _opened(self, origin: Origin) -> AbstractAsyncContextManager[Connection]:
        return opened(
            origin,
            self.backend,
            purpose=_PURPOSE,
            deadline_s=self.plan.timeout_s,
            close_s=self.plan.close_s,
        )

    async def run(self) -> tuple[int, float, Diagnosis]:
        """Steps, rate and diagnosis of the last round."""
        plan = self.plan
        origin = FromBaseModel(plan.base_model, {"rank": plan.rank, "seed": 0})
        self.progress(f"creating a run of {plan.base_model}, rank {plan.rank}")
        async with self._opened(origin) as live:
            done = 0
            steps, rate = plan.steps, plan.learning_rate
            for round_ in range(1, ROUNDS + 1):
                self.progress(f"training {counted(steps, 'step')} at learning rate {rate:g}")
                for step in range(done, done + steps):
                    await results(one_step(live.training, step, rate))
                done += steps
                diagnosis = diagnose(await self._compare(live.training, live.run_id, done, rate))
                if diagnosis.finding is not OptimizerFinding.INCONCLUSIVE or round_ == ROUNDS:
                    break
                self.progress("inconclusive: another round, with more steps at a higher rate")
                done += 1  # the step that was compared
                steps, rate = steps * 2, rate * 4
        return done, rate, diagnosis

    async def _compare(
        self, live: tinker.TrainingClient, run_id: str, step: int, rate: float
    ) -> Observations:
        name = f"doctor-{step}-{secrets.token_hex(4)}"
        asked = [live.forward(PROBE, "cross_entropy") for _ in range(2)]
        saving = live.save_state(name, ttl_seconds=TTL_S)
        async with stored(
            saving.future(),
            f"tinker://{run_id}/weights/{name}",
            self.calls,
            deadline_s=self.plan.timeout_s,
            close_s=self.plan.close_s,
        ) as path:
            before = await _answers(asked)
            self.progress("continuing live, one step")
            await results(one_step(live, step, rate))
            after = await _answers([live.forward(PROBE, "cross_entropy") for _ in range(2)])
            warm = []
            for again in ("", ", again"):
                self.progress(f"resuming with optimizer{again}, one step")
                warm.append(await self._resumed(path, step, rate, optimizer=True))
            self.progress("resuming with weights only, one step")
            cold = await self._resumed(path, step, rate, optimizer=False)
        return Observations(Stand(before, after), (warm[0], warm[1]), cold)

    async def _resumed(self, path: str, step: int, rate: float, *, optimizer: bool) -> Stand:
        async with self._opened(FromCheckpoint(path, optimizer=optimizer)) as connection:
            training = connection.training
            before = [training.forward(PROBE, "cross_entropy") for _ in range(2)]
            stepping = one_step(training, step, rate)
            after = [training.forward(PROBE, "cross_entropy") for _ in range(2)]
            answered = await _answers(before)
            await results(stepping)
            return Stand(answered, await _answers(after))


def one_step(training: tinker.TrainingClient, step: int, rate: float) -> list[Any]:
    """Submit one step, the same on every client."""
    return [
        training.forward_backward(_batch(step), "cross_entropy"),
        training.optim_step(types.AdamParams(learning_rate=rate)),
    ]


async def results(futures: list[Any]) -> list[Any]:
    """The results of requests, in their order."""
    return [await result_of(future.future()) for future in futures]


async def _answers(futures: list[Any]) -> tuple[Answer, Answer]:
    one, other = await results(futures)
    return answer_of(one), answer_of(other)
