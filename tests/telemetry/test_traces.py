"""A recovery in its trace, through the real OpenTelemetry SDK."""

from __future__ import annotations

import functools
import logging

import anyio.lowlevel
import pytest
import tinker
from inspection import http_auth, status_reader
from loops import ADAM, MODEL, InstantClock, batch, policy, quick, train
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from span_reading import events, failed, incident, links, named, only, ours, says, span_id

from tinker_recovery import Attempt, RecoveryEvent, RecoveryExhausted, Supervisor
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12


async def test_one_recovery_is_one_trace_with_a_span_for_each_phase(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    local.poison(at_step=7)
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL, name="sft")
    (run,) = supervisor.runs
    root = only(ours(spans), names.SPAN_RECOVERY)
    phases = incident(ours(spans), root)
    assert [span.name for span in phases] == [
        names.SPAN_DETECT,
        names.SPAN_SELECT,
        names.SPAN_VALIDATE,
        names.SPAN_CREATE,
        names.SPAN_RESUME,
    ]
    assert root.parent is None
    for span in phases:
        assert span.parent is not None
        assert span.parent.span_id == span_id(root)
        assert not failed(span)
    root_says = says(root)
    assert root_says[names.RUN] == "sft"
    assert root_says[names.LINEAGE] == run.lineage
    assert root_says[names.RUN_ID] == run.segments[0].run_id
    assert root_says[names.ATTEMPT] == 1
    assert root_says[names.FAULT_KIND] == "request_failed"
    assert root_says[names.FAULT_DETECTED_BY] == "call"
    assert root_says[names.VERDICT] == "recover"
    assert root_says[names.OUTCOME] == names.RECOVERED
    assert not failed(root)
    _, select, validate, create, resume = phases
    (recovery,) = run.recoveries
    assert recovery.checkpoint is not None
    assert says(select)[names.CHECKPOINTS_FOUND] == 1
    for span in (validate, create):
        assert says(span)[names.CHECKPOINT_PATH] == recovery.checkpoint.path
        assert says(span)[names.CHECKPOINT_STEP] == 5
    assert says(create)[names.RUN_ID] == run.segments[1].run_id
    assert says(resume)[names.REPLAYED_STEPS] == recovery.replayed_steps
    assert says(resume)[names.ATTEMPT] == 2
    assert all(says(span)[names.TRY] == 1 for span in phases[1:])
    assert events(root) == [names.EVENT_DETECTED, names.EVENT_STARTED]
    assert events(validate) == [names.EVENT_CHECKPOINT_SELECTED]
    assert events(create) == [names.EVENT_CLIENT_CREATED]
    assert events(resume) == [names.EVENT_COMPLETED]


async def test_start_segments_recoveries_and_end_of_a_run_are_roots_that_link_to_each_other(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    local.poison(at_step=7)
    local.poison(at_step=11)
    with trace.get_tracer("the user's").start_as_current_span("experiment") as users:
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    all_ours = ours(spans)
    start, end = only(all_ours, names.SPAN_RUN_START), only(all_ours, names.SPAN_RUN_END)
    segments, recoveries = named(all_ours, names.SPAN_SEGMENT), named(all_ours, names.SPAN_RECOVERY)
    roots = [start, *segments, *recoveries, end]
    assert len(segments) == 3
    assert len(recoveries) == 2
    assert all(span.parent is None for span in roots)
    assert len({span.context.trace_id for span in roots if span.context}) == len(roots)
    assert links(start) == {names.LINK_CALLER: users.get_span_context().span_id}
    assert links(segments[0]) == {names.LINK_RUN: span_id(start)}
    for number, recovery in enumerate(recoveries):
        before = {names.LINK_PREVIOUS: span_id(recoveries[0])} if number else {}
        assert links(recovery) == before | {
            names.LINK_REPLACED: span_id(segments[number]),
            names.LINK_RUN: span_id(start),
        }
        assert links(segments[number + 1]) == {
            names.LINK_RUN: span_id(start),
            names.LINK_RECOVERY: span_id(recovery),
        }
    assert links(end) == {
        names.LINK_RUN: span_id(start),
        names.LINK_LAST_SEGMENT: span_id(segments[2]),
        names.LINK_PREVIOUS: span_id(recoveries[1]),
    }
    (run,) = supervisor.runs
    assert [says(each)[names.RUN_ID] for each in segments] == [each.run_id for each in run.segments]
    assert [says(each)[names.START_STEP] for each in segments] == [0, 5, 10]
    assert [says(each)[names.STEP] for each in segments] == [7, 11, STEPS]
    for segment, behind in zip(segments, [*recoveries, end], strict=True):
        assert segment.start_time is not None
        assert segment.end_time is not None
        assert behind.start_time is not None
        assert behind.end_time is not None
        assert segment.start_time < segment.end_time <= behind.end_time, "as long as it trained"
    assert says(end)[names.OUTCOME] == names.COMPLETED
    assert says(end)[names.STEP] == STEPS
    assert says(end)[names.RECOVERIES] == 2


async def test_a_run_given_up_is_one_trace_with_every_attempt_and_its_error(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    local.poison(at_step=7)
    local.inject(FaultRule("fail", request="load_weights", times=3))
    clock = InstantClock(poll_interval_s=30.0)
    with pytest.raises(RecoveryExhausted):
        async with Supervisor(policy(), clock=clock.clock) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    root = only(ours(spans), names.SPAN_RECOVERY)
    phases = incident(ours(spans), root)
    created = named(phases, names.SPAN_CREATE)
    assert [failed(span) for span in created] == [True] * 3
    assert [says(span)[names.TRY] for span in created] == [1, 2, 3]
    assert all(says(span)[names.ERROR_TYPE] == "RequestFailedError" for span in created)
    assert [says(span)[names.TRY] for span in named(phases, names.SPAN_BACKOFF)] == [2, 3]
    assert events(root).count(names.EVENT_FAILED) == 3
    assert events(root)[-1] == names.EVENT_EXHAUSTED
    assert failed(root)
    assert says(root)[names.OUTCOME] == names.EXHAUSTED
    assert says(root)[names.ERROR_TYPE] == "RecoveryExhausted"
    end = only(ours(spans), names.SPAN_RUN_END)
    assert failed(end)
    assert says(end)[names.OUTCOME] == names.FAILED


async def test_spans_a_callback_makes_are_children_of_the_phase_that_called_it(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    """Plain and async callbacks alike, and also where the run is given up."""
    tracer = trace.get_tracer("the user's")

    def plain(*_: object) -> None:
        with tracer.start_as_current_span("on_recovery"):
            pass

    async def waits(*_: object) -> None:
        with tracer.start_as_current_span("outer"):
            await anyio.lowlevel.checkpoint()
            with tracer.start_as_current_span("on_failure"):
                await anyio.lowlevel.checkpoint()

    local.poison(at_step=7)
    local.inject(FaultRule("status", at_step=9, request="optim_step", status=403))
    given = policy(on_recovery=plain, on_failure=waits)
    with pytest.raises(tinker.PermissionDeniedError):
        async with Supervisor(given) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    everything = spans.get_finished_spans()
    first, second = named(everything, names.SPAN_RECOVERY)
    resume = only(incident(ours(spans), first), names.SPAN_RESUME)
    parents = {span.name: span.parent.span_id for span in everything if span.parent is not None}
    assert parents["on_recovery"] == span_id(resume)
    assert parents["outer"] == span_id(second)
    assert parents["on_failure"] == span_id(only(everything, "outer"))
    assert failed(second)
    assert says(second)[names.OUTCOME] == names.OBSERVED
    assert says(second)[names.ERROR_TYPE] == "PermissionDeniedError"


async def test_a_skipped_step_is_an_event_inside_the_recovery(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    tracer = trace.get_tracer("the user's")

    async def skipped(*_: object) -> None:
        tracer.start_span("on_skip").end()

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            if attempt.skip(step):
                continue
            await attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)

    local.inject(FaultRule("fail", 7, "forward_backward", times=2))
    given = quick(on_repeated_fault="skip_step", on_skip=skipped)
    async with Supervisor(given) as supervisor:
        await supervisor.run(loop, base_model=MODEL)
    second = named(ours(spans), names.SPAN_RECOVERY)[1]
    resume = only(incident(ours(spans), second), names.SPAN_RESUME)
    assert names.EVENT_STEP_SKIPPED in events(resume)
    user = only(spans.get_finished_spans(), "on_skip")
    assert user.parent is not None
    assert user.parent.span_id == span_id(resume)


async def test_an_error_raised_by_a_callback_is_on_the_span(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    def raises(*_: object) -> None:
        raise RuntimeError("the callback failed")

    local.poison(at_step=7)
    async with Supervisor(policy(on_recovery=raises)) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    resume = only(ours(spans), names.SPAN_RESUME)
    assert "exception" in events(resume)
    assert not failed(resume), "the recovery itself went well"


async def test_a_status_that_cannot_be_read_is_an_event_and_not_a_fault(
    local: LocalTinker,
) -> None:
    """The key is good for the SDK's clients and not for ours: the service refuses each poll."""
    local.inject(FaultRule("status", request="training_run", status=401, for_s=60.0))
    events_seen: list[RecoveryEvent] = []

    async def main() -> None:
        async with Supervisor(
            policy(poll_interval_s=0.01), service=local.service, on_event=events_seen.append
        ) as supervisor:
            async for attempt in supervisor.attempts(base_model=MODEL, name="sft"):
                async with attempt:
                    while not any(event.name == names.EVENT_POLL_ERROR for event in events_seen):
                        await train(attempt, steps=attempt.client.step + 1)
        assert supervisor.runs[0].recoveries == []

    await main()
    error = next(event for event in events_seen if event.name == names.EVENT_POLL_ERROR)
    assert error.run == "sft"
    assert "HTTP 401" in error.message


async def test_the_api_key_appears_in_no_log_no_span_no_event_and_no_repr(
    local: LocalTinker, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    events_seen: list[RecoveryEvent] = []
    caplog.set_level(logging.DEBUG, "tinker_recovery")
    local.poison(at_step=7)
    local.inject(FaultRule("fail", request="load_weights", times=3))
    clock = InstantClock(poll_interval_s=0.01)
    with pytest.raises(RecoveryExhausted) as caught:
        async with Supervisor(
            policy(poll_interval_s=0.01), on_event=events_seen.append, clock=clock.clock
        ) as supervisor:
            reader = status_reader(supervisor)
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    shown = "\n".join(
        [
            caplog.text,
            repr(events_seen),
            repr(caught.value),
            str(caught.value),
            repr(reader),
            repr(reader.http.endpoint),
            repr(http_auth(reader)),
            repr(vars(supervisor)),
            *(span.to_json() for span in ours(spans)),
        ]
    )
    assert local.api_key not in shown
    assert "recovery.exhausted" in shown
