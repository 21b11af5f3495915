"""A fault in each phase of a recovery: in the trace, the phase ends as an error."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable

import pytest
from inspection import expect_size
from loops import MODEL, InstantClock, batch, loop, policy, train, until
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from span_reading import failed, incident, named, only, ours, says
from stuck import Stuck

from tinker_recovery import Attempt, RecoveryEvent, RecoveryRefused, Supervisor
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12
AT_DETECTION = {
    "select": FaultRule("malformed", request="run_checkpoints"),
    "create_client": FaultRule("fail", request="load_weights"),
}


async def _recovered(
    local: LocalTinker, note: Callable[[RecoveryEvent], object], at_step: int = 7
) -> None:
    local.inject(FaultRule("fail", at_step, "optim_step"))
    clock = InstantClock(poll_interval_s=30.0)
    given = policy(canary=batch(3))
    async with Supervisor(given, on_event=note, clock=clock.clock) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)


@pytest.mark.parametrize(
    ("phase", "error_type"),
    [("select", "StatusRefused"), ("create_client", "RequestFailedError")],
)
async def test_a_phase_that_fails_ends_as_an_error_and_the_next_try_is_in_the_same_trace(
    local: LocalTinker, spans: InMemorySpanExporter, phase: str, error_type: str
) -> None:
    def note(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_DETECTED:
            local.inject(AT_DETECTION[phase])

    await _recovered(local, note)
    root = only(ours(spans), names.SPAN_RECOVERY)
    tries = named(incident(ours(spans), root), f"recovery.{phase}")
    assert [failed(span) for span in tries] == [True, False]
    assert says(tries[0])[names.ERROR_TYPE] == error_type
    assert [says(span)[names.TRY] for span in tries] == [1, 2]
    assert [event.name for event in tries[0].events] == ["exception"]
    assert not failed(root), "the incident as a whole succeeded"


async def test_a_rejected_candidate_ends_as_an_error_and_the_next_has_its_own_span(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    def note(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_DETECTED:
            # Smaller than when it was stored: cut off.
            path = str(supervisor.runs[0].segments[0].run_id)
            newest = [each.path for each in local.checkpoints(path)][-1]
            expect_size(supervisor.runs[0], newest, 1)

    local.inject(FaultRule("fail", 11, "optim_step"))
    async with Supervisor(policy(), on_event=note) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    root = only(ours(spans), names.SPAN_RECOVERY)
    first, second = named(incident(ours(spans), root), names.SPAN_VALIDATE)
    assert failed(first)
    assert says(first)[names.ERROR_TYPE] == names.BAD_CHECKPOINT
    assert says(first)[names.CHECKPOINT_STEP] == 10
    assert first.status.description
    assert not failed(second)
    assert says(second)[names.CHECKPOINT_STEP] == 5


async def test_a_canary_that_fails_or_differs_ends_verify_as_an_error(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    """The first new client fails the canary, the second restores other weights than were saved."""

    def note(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_DETECTED:
            local.inject(FaultRule("fail", 10, "forward_backward"))
        if event.name == names.EVENT_FAILED:
            local.inject(FaultRule("wrong_restore"))

    await _recovered(local, note, at_step=11)
    root = only(ours(spans), names.SPAN_RECOVERY)
    verified = named(incident(ours(spans), root), names.SPAN_VERIFY)
    assert [failed(span) for span in verified] == [True, True, False]
    assert says(verified[0])[names.ERROR_TYPE] == "RequestFailedError"
    assert says(verified[1])[names.ERROR_TYPE] == names.BAD_CHECKPOINT
    assert "the canary's logprobs differ" in str(verified[1].status.description)


@pytest.mark.parametrize(
    "phase", ["select", "validate", "create_client", "verify", "resume", "backoff"]
)
async def test_a_phase_that_is_cancelled_ends_as_an_error_and_so_does_the_incident(
    local: LocalTinker,
    spans: InMemorySpanExporter,
    phase: str,
) -> None:
    """The SDK by itself leaves such a span without a status, as if nothing had happened."""
    stuck = Stuck(local, phase)
    local.inject(FaultRule("fail", 7, "optim_step"))
    given = policy(canary=batch(3), on_recovery=stuck.resume, backoff_s=60.0, poll_interval_s=0.05)

    async def training(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        # The validation asks for the weights' facts where a poll has brought those of the run. The
        # retention worker asks the same of each checkpoint, once: let it do so before.
        asked = ("training_run", "training_run", "weights_info")
        await until(lambda: not Counter(asked) - Counter(local.stats.by_route))
        await loop(attempt.client, 7, STEPS, 0)

    async def run() -> None:
        async with Supervisor(given, on_event=stuck.note) as supervisor:
            await supervisor.run(training, base_model=MODEL)

    running = asyncio.create_task(run())
    await until(stuck.is_stuck)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    root = only(ours(spans), names.SPAN_RECOVERY)
    cut_short = named(incident(ours(spans), root), f"recovery.{phase}")[-1]
    end = only(ours(spans), names.SPAN_RUN_END)
    for span in (cut_short, root, end):
        assert failed(span)
        assert says(span)[names.ERROR_TYPE] == "CancelledError"
    assert says(root)[names.OUTCOME] == says(end)[names.OUTCOME] == names.INTERRUPTED


async def test_an_incident_that_a_retry_cannot_change_ends_as_an_error_at_once(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    def note(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_DETECTED:
            local.inject(FaultRule("status", request="run_checkpoints", status=403))

    with pytest.raises(RecoveryRefused):
        await _recovered(local, note)
    root = only(ours(spans), names.SPAN_RECOVERY)
    select = only(incident(ours(spans), root), names.SPAN_SELECT)
    assert failed(select)
    assert says(select)[names.ERROR_TYPE] == "StatusRefused"
    assert failed(root)
    assert says(root)[names.OUTCOME] == names.REFUSED
    assert says(root)[names.ERROR_TYPE] == "RecoveryRefused"
