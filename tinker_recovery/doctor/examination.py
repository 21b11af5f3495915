"""The experiment: a short run, one checkpoint, three ways to go on from it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import tinker
from tinker import types

from tinker_recovery.checkpoints.canary import Answer, answer_of
from tinker_recovery.doctor.comparison import (
    Diagnosis,
    Finding,
    Observations,
    Stand,
    diagnose,
)
from tinker_recovery.errors import DeadlineExceeded, UsageError
from tinker_recovery.service import Backend, FromBaseModel, FromCheckpoint, StatusReader
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.temporary import TTL_S, opened, stored
from tinker_recovery.service.waiting import result_of

ROUNDS = 3
"""Experiments before "it cannot be told"; each trains twice as long at four times the rate."""

_PURPOSE = "an experiment: does the optimizer come back?"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamPlan:
    """What to examine, and with what.

    Attributes:
        base_model: The model to train.
        rank: LoRA rank; 1 or more.
        steps: Steps before the checkpoint; 2 or more, for after one alone the moments hold little.
        learning_rate: Of the first experiment.
        timeout_s: Deadline of the whole, in seconds.
        close_s: Deadline of each part of the cleaning up, which comes on top.

    Raises:
        UsageError: One is out of its range.
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
    """What an examination found.

    Attributes:
        base_url: The service.
        sdk: Version of the tinker SDK.
        base_model: The model that was trained.
        rank: Its LoRA rank.
        steps: Steps before the checkpoint that the diagnosis rests on.
        learning_rate: The rate of its steps.
        diagnosis: What was found.
    """

    base_url: str
    sdk: str
    base_model: str
    rank: int
    steps: int
    learning_rate: float
    diagnosis: Diagnosis


def _batch(step: int) -> list[types.Datum]:
    """A few tokens, different from step to step: where gradients agree, moments hardly matter."""
    return [_datum([100 + (step * 31 + row * 13 + at * at * 7) % 256 for at in range(17)])
            for row in range(2)]  # fmt: skip


def _datum(tokens: list[int]) -> types.Datum:
    targets = types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1])
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": targets},
    )


PROBE = [_datum([100 + (row * 41 + at * 11) % 256 for at in range(33)]) for row in range(2)]
"""The batch that all are asked about; it is never trained on."""


async def examine(
    plan: ExamPlan,
    *,
    backend: Backend,
    reader: StatusReader,
    progress: Callable[[str], object] = lambda _: None,
) -> Report:
    """Find out whether the service's restore with optimizer is real.

    Opens four sessions and trains a handful of steps on a hundred tokens; more of it only while
    nothing can be told. Whatever happens, cancellation included, its checkpoints are deleted and
    its sessions finished on the way out.

    Args:
        plan: What to examine.
        backend: Makes clients.
        reader: The service's word; asked first, so that one out of reach is told at once.
        progress: Told what is done now, in words.

    Raises:
        DeadlineExceeded: It took longer than ``plan.timeout_s``.
        StatusError: The service is out of reach, or lets nobody in.
        Exception: Whatever else the service answered.
    """
    progress("asking whether the service is there")
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


class _Experiment:
    """The rounds, in one live run."""

    def __init__(
        self,
        plan: ExamPlan,
        backend: Backend,
        calls: CheckpointCalls,
        progress: Callable[[str], object],
    ) -> None:
        self._plan = plan
        self._backend = backend
        self._calls = calls
        self._progress = progress

    async def run(self) -> tuple[int, float, Diagnosis]:
        """Steps, rate and diagnosis of the last round."""
        plan = self._plan
        origin = FromBaseModel(plan.base_model, {"rank": plan.rank, "seed": 0})
        self._progress(f"creating a run of {plan.base_model}, rank {plan.rank}")
        async with opened(
            origin,
            self._backend,
            purpose=_PURPOSE,
            deadline_s=plan.timeout_s,
            close_s=plan.close_s,
        ) as live:
            done = 0
            steps, rate = plan.steps, plan.learning_rate
            for round_ in range(1, ROUNDS + 1):
                self._progress(f"training {steps} steps at learning rate {rate:g}")
                for step in range(done, done + steps):
                    await _all(_step(live.training, step, rate))
                done += steps
                diagnosis = diagnose(await self._compare(live.training, live.run_id, done, rate))
                if diagnosis.finding is not Finding.INCONCLUSIVE or round_ == ROUNDS:
                    break
                self._progress("the optimizer's part is too small to tell: once more, with more")
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
            self._calls,
            deadline_s=self._plan.timeout_s,
            close_s=self._plan.close_s,
        ) as path:
            before = await _answers(asked)
            self._progress("going on live, one step")
            await _all(_step(live, step, rate))
            after = await _answers([live.forward(PROBE, "cross_entropy") for _ in range(2)])
            warm = []
            for again in ("", ", again"):
                self._progress(f"resuming with optimizer{again}, one step")
                warm.append(await self._resumed(path, step, rate, optimizer=True))
            self._progress("resuming with weights only, one step")
            cold = await self._resumed(path, step, rate, optimizer=False)
        return Observations(Stand(before, after), (warm[0], warm[1]), cold)

    async def _resumed(self, path: str, step: int, rate: float, *, optimizer: bool) -> Stand:
        async with opened(
            FromCheckpoint(path, optimizer=optimizer),
            self._backend,
            purpose=_PURPOSE,
            deadline_s=self._plan.timeout_s,
            close_s=self._plan.close_s,
        ) as connection:
            training = connection.training
            before = [training.forward(PROBE, "cross_entropy") for _ in range(2)]
            stepping = _step(training, step, rate)
            after = [training.forward(PROBE, "cross_entropy") for _ in range(2)]
            answered = await _answers(before)
            await _all(stepping)
            return Stand(answered, await _answers(after))


def _step(training: tinker.TrainingClient, step: int, rate: float) -> list[Any]:
    """Submit one step; the same one for whoever is at it."""
    return [
        training.forward_backward(_batch(step), "cross_entropy"),
        training.optim_step(types.AdamParams(learning_rate=rate)),
    ]


async def _all(futures: list[Any]) -> list[Any]:
    return [await result_of(future.future()) for future in futures]


async def _answers(futures: list[Any]) -> tuple[Answer, Answer]:
    one, other = await _all(futures)
    return answer_of(one), answer_of(other)
