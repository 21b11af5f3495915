"""The experiment, at services whose restores are known."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from inspection import set_doctor_rounds, training_sessions
from loops import MODEL, SEED, cancelled_in, policy, train, until
from pydantic import SecretStr

from tinker_recovery import (
    Attempt,
    DeadlineExceeded,
    RecoveryEvent,
    StatusRefused,
    StatusUnavailable,
    Supervisor,
    UsageError,
)
from tinker_recovery.doctor import ExamPlan, examine
from tinker_recovery.doctor.comparison import OptimizerFinding
from tinker_recovery.service import Endpoint, StatusReader, TinkerBackend
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker


@asynccontextmanager
async def reading(local: LocalTinker, key: str | None = None) -> AsyncIterator[StatusReader]:
    endpoint = Endpoint(local.base_url, SecretStr(key or local.api_key))
    async with StatusReader(endpoint, timeout_s=2.0) as reader:
        yield reader


async def found(
    local: LocalTinker, phases: list[str] | None = None, **plan: float
) -> OptimizerFinding:
    """What is found; and nothing is left behind."""
    progress = print if phases is None else phases.append
    async with reading(local) as reader:
        report = await examine(
            ExamPlan(base_model=MODEL, **plan),  # type: ignore[arg-type]  # by name
            backend=TinkerBackend(local.service),
            reader=reader,
            progress=progress,
        )
        await nothing_is_left(local, reader)
    return report.diagnosis.finding


async def nothing_is_left(local: LocalTinker, reader: StatusReader) -> None:
    assert [each async for each in reader.every_checkpoint()] == []
    assert "active" not in local.sessions().values()


async def test_a_service_that_restores_to_the_bit_is_found_exact(local: LocalTinker) -> None:
    phases: list[str] = []
    assert await found(local, phases) is OptimizerFinding.EXACT
    assert len(local.sessions()) == 4
    assert [one for one in phases if "resuming" in one] == [
        "resuming with optimizer, one step",
        "resuming with optimizer, again, one step",
        "resuming with weights only, one step",
    ]


async def test_a_service_that_demands_weights_and_has_256_tokens_is_examined() -> None:
    async with LocalTinker(dialect="strict") as local:
        assert await found(local) is OptimizerFinding.EXACT


async def test_a_service_whose_restores_are_silently_cold_is_caught() -> None:
    async with LocalTinker(cold_optimizer=True) as local:
        assert await found(local) is OptimizerFinding.COLD


@pytest.mark.parametrize(
    ("action", "times", "finding"),
    [
        ("cold_optimizer", 1, OptimizerFinding.COLD),
        ("wrong_restore", 3, OptimizerFinding.WEIGHTS_CHANGED),
    ],
)
async def test_one_wrong_restore_is_enough_and_so_are_all_of_them(
    local: LocalTinker, action: str, times: int, finding: OptimizerFinding
) -> None:
    local.inject(FaultRule(action, request="load_weights", times=times))  # type: ignore[arg-type]  # pytest's parameters
    assert await found(local) is finding


async def test_while_it_is_inconclusive_more_steps_and_larger_ones_are_tried(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_doctor_rounds(monkeypatch, 2)
    phases: list[str] = []
    # So small a rate changes no logprob at all.
    assert await found(local, phases, learning_rate=1e-12, steps=2) is OptimizerFinding.INCONCLUSIVE
    assert [one for one in phases if one.startswith("training")] == [
        "training 2 steps at learning rate 1e-12",
        "training 4 steps at learning rate 4e-12",
    ]


@pytest.mark.parametrize("phase", ["creating", "continuing", "resuming with optimizer"])
async def test_nothing_is_left_by_an_examination_that_is_cancelled(phase: str) -> None:
    async with LocalTinker(save_s=0.05, load_s=0.05) as local, reading(local) as reader:
        examination = functools.partial(
            examine,
            ExamPlan(base_model=MODEL),
            backend=TinkerBackend(local.service),
            reader=reader,
        )
        await cancelled_in(phase, examination)
        await nothing_is_left(local, reader)


async def test_an_examination_that_cannot_finish_is_an_error_and_nothing_is_left(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("hang", request="optim_step"))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="the examination took longer"):
        await found(local, timeout_s=0.5, close_s=0.3)
    assert time.monotonic() - began < 20
    async with reading(local) as reader:
        await nothing_is_left(local, reader)
    with pytest.raises(StatusRefused, match="HTTP 401"):
        async with reading(local, "tml-another") as reader:
            await examine(
                ExamPlan(base_model=MODEL), backend=TinkerBackend(local.service), reader=reader
            )
    local.begin_outage()
    with pytest.raises(StatusUnavailable):
        await found(local)
    local.end_outage()


@pytest.mark.parametrize(
    ("field", "value"), [("rank", 0), ("steps", 1), ("learning_rate", 0.0), ("timeout_s", -1.0)]
)
def test_a_plan_that_cannot_be_is_refused_with_the_value(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{field}={value}"):
        ExamPlan(base_model=MODEL, **{field: value})  # type: ignore[arg-type]  # by name


# By a Supervisor


async def _supervised(
    local: LocalTinker, wait_for: str | None, names_of_runs: str = "a"
) -> list[str]:
    """Train with ``verify_optimizer``; the warnings there were."""
    warnings: list[str] = []

    def listen(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_OPTIMIZER_NOT_RESTORED:
            warnings.append(event.message)

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        if wait_for == "warning":
            await until(lambda: bool(warnings))
        elif wait_for is not None:
            await until(lambda: wait_for in _log.text)

    async with Supervisor(policy(verify_optimizer=True), on_event=listen) as supervisor:
        for name in names_of_runs:
            await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED, name=name)
    for run in supervisor.runs:
        assert local.run_state(run.segments[-1].run_id).steps == 3
    return warnings


_log: pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def _hear(caplog: pytest.LogCaptureFixture) -> None:
    global _log  # noqa: PLW0603 - the log of this test
    caplog.set_level(logging.INFO)
    _log = caplog


async def test_a_supervisor_warns_of_a_cold_service_once_and_knows_it_ever_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with LocalTinker(cold_optimizer=True) as local:
        monkeypatch.setenv("TINKER_BASE_URL", local.base_url)
        monkeypatch.setenv("TINKER_API_KEY", local.api_key)
        (warning,) = await _supervised(local, "warning", "ab")
        assert "The optimizer is not restored" in warning
        assert len(training_sessions(local)) == 2 + 4
        (again,) = await _supervised(local, "warning", "c")
        assert again == warning
        assert len(training_sessions(local)) == 2 + 4 + 1, "it was not examined again"
        assert "active" not in local.sessions().values()


async def test_a_supervisor_is_silent_where_the_optimizer_is_restored(local: LocalTinker) -> None:
    assert await _supervised(local, "is restored exactly") == []
    assert len(training_sessions(local)) == 1 + 4


async def test_a_check_that_fails_is_logged_and_training_continues(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", request="load_weights"))
    assert await _supervised(local, "could not find out whether the optimizer") == []


async def test_a_run_that_ends_first_ends_the_check_and_leaves_nothing(local: LocalTinker) -> None:
    local.inject(FaultRule("pause", request="load_weights", for_s=30.0))
    began = time.monotonic()
    assert await _supervised(local, None) == []
    assert time.monotonic() - began < 20
    async with reading(local) as reader:
        left = [each async for each in reader.every_checkpoint()]
        assert [each.tinker_path for each in left if "doctor" in each.tinker_path] == []
