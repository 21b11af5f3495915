"""A service that trains, and carries out no forward pass alone: no loop is worth less for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import tinker
from loops import MODEL, SEED, batch, quick, train, undisturbed_state
from starlette.requests import Request
from starlette.responses import Response
from sweeps import pairs

from tinker_recovery import CheckpointPolicy, RecoveryEvent, Supervisor
from tinker_recovery.faults import Kind
from tinker_recovery.run.canary_loss import OFF_AT_LAST
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker
from tinker_recovery.testing._app import TinkerApp, _accepted
from tinker_recovery.testing._protobuf import read_request
from tinker_recovery.testing._runs import RequestError, ServiceError

STEPS = 14
Answer = Callable[[TinkerApp, Any], Response | None]
"""What becomes of a forward pass alone; None to carry it out."""


def status(code: int) -> Answer:
    def answer(_: TinkerApp, __: Any) -> Response | None:
        raise ServiceError(code, "no forward passes here")

    return answer


def failed(category: str) -> Answer:
    def answer(app: TinkerApp, body: Any) -> Response | None:
        def execute(_: object) -> bytes:
            raise RequestError("no forward passes here", category)

        return _accepted(app._state.submit(body.model_id, body.seq_id, "forward_backward", execute))

    return answer


def hang(app: TinkerApp, body: Any) -> Response | None:
    rule = FaultRule("hang", request="forward_backward", run=body.model_id)
    app._state._faults.add(rule)
    return None


def ignored(_: RecoveryEvent) -> None:
    """For a run of which nobody wants to hear."""


def have(monkeypatch: pytest.MonkeyPatch, answer: Answer, *, times: float = float("inf")) -> None:
    """Have every local server answer forward passes alone so, the first of them."""
    plain, asked = TinkerApp._forward_backward, 0

    async def forward_backward(self: TinkerApp, request: Request) -> Response:
        nonlocal asked
        body = read_request(await request.body(), request.headers.get("content-encoding"))
        answered = None
        if body.forward_only:
            asked += 1
            answered = answer(self, body) if asked <= times else None
        return await plain(self, request) if answered is None else answered

    monkeypatch.setattr(TinkerApp, "_forward_backward", forward_backward)


async def a_run(
    *rules: FaultRule, on_event: Callable[[RecoveryEvent], None] = ignored, **changes: Any
) -> list[Kind]:
    """What a run of 14 steps recovers from."""
    given = quick(
        **{
            "stall_after_s": 20.0,
            "canary": "auto",
            "checkpoints": CheckpointPolicy(save_every=5),
            **changes,
        }
    )
    async with LocalTinker() as local:
        for rule in rules:
            local.inject(rule)
        async with Supervisor(
            given, service=local.service, journal=None, on_event=on_event
        ) as supervisor:
            loop = functools.partial(train, steps=STEPS)
            with anyio.fail_after(60):
                await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED)
            (run,) = supervisor.runs
        state = local.run_state(run.segments[-1].run_id)
        assert state == await undisturbed_state(local, steps=STEPS)
    return [each.fault.kind for each in run.recoveries]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("code", "attempts"), pairs([400, 403, 404, 405, 409, 422, 429, 500, 501, 503], [1, 3], 11)
)
async def test_a_loop_ends_well_where_no_canary_is_accepted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, attempts: int
) -> None:
    have(monkeypatch, status(code))
    kinds = await a_run(max_attempts=attempts)
    assert len(kinds) == (1 if code in {400, 403, 405, 422} else 2)
    assert kinds[-1] is Kind.CANCELLED
    (said,) = [line for line in caplog.messages if "has no canary" in line]
    assert f"HTTP {code}: no forward passes here" in said


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("category", ["server", "unknown", "user"])
async def test_a_loop_ends_well_where_every_canary_fails(
    monkeypatch: pytest.MonkeyPatch, category: str, attempts: int
) -> None:
    have(monkeypatch, failed(category))
    kinds = await a_run(max_attempts=attempts)
    assert len(kinds) <= 2


@pytest.mark.parametrize("given", ["auto", tuple(batch(3))])
async def test_a_loop_ends_well_where_every_canary_hangs(
    monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    have(monkeypatch, hang)
    kinds = await a_run(max_attempts=1, canary=given, stall_after_s=1.0)
    assert kinds == [Kind.SILENCE, Kind.SILENCE]


async def test_a_loop_ends_well_where_only_restored_clients_have_it_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each attempt begins as it should, and loses its canary at the next save."""
    seen = set[str]()

    def answer(app: TinkerApp, body: Any) -> Response | None:
        if body.model_id in seen:
            return hang(app, body)
        seen.add(body.model_id)
        return None

    have(monkeypatch, answer)
    kinds = await a_run(max_attempts=1, canary=tuple(batch(3)), stall_after_s=0.5)
    assert set(kinds) == {Kind.SILENCE}
    assert len(kinds) <= OFF_AT_LAST


async def test_a_canary_of_the_users_own_that_the_service_refuses_is_their_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have(monkeypatch, status(422))
    with pytest.raises(tinker.UnprocessableEntityError):
        await a_run(canary=tuple(batch(3)))


async def test_one_canary_that_fails_is_a_fault_as_any_and_the_next_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    have(monkeypatch, failed("server"), times=1)
    assert await a_run() == [Kind.REQUEST_FAILED]
    assert "has no canary" not in caplog.text


@pytest.mark.parametrize("given", ["auto", tuple(batch(3))])
async def test_a_restore_that_no_answer_of_the_canary_can_be_compared_with_is_said(
    monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    have(monkeypatch, hang, times=1)
    told: list[RecoveryEvent] = []
    kinds = await a_run(canary=given, on_event=told.append, stall_after_s=1.0)
    assert kinds == [Kind.SILENCE]
    (said,) = [event for event in told if event.name == names.EVENT_WEIGHTS_UNKNOWN]
    assert str(said.fields[names.CHECKPOINT_PATH]) in said.message
    assert "no answer of the canary is known" in said.message


@pytest.mark.parametrize("given", ["auto", tuple(batch(3)), None])
async def test_a_restore_that_is_compared_or_that_nobody_wants_compared_is_not(given: Any) -> None:
    told: list[RecoveryEvent] = []
    rule = FaultRule("poison", 7, "forward_backward")
    assert len(await a_run(rule, canary=given, on_event=told.append)) == 1
    assert names.EVENT_WEIGHTS_UNKNOWN not in {event.name for event in told}
