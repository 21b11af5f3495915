"""A recovery as its trace tells it, through the real OpenTelemetry SDK."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator

import pytest
from loops import MODEL, InstantClock, policy, train
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tinker_recovery import RecoveryEvent, RecoveryExhausted, Supervisor
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12


def _ours(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    """Our spans; the SDK's HTTP client makes its own."""
    return [
        span
        for span in exporter.get_finished_spans()
        if span.instrumentation_scope and span.instrumentation_scope.name == names.SCOPE
    ]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    provider = TracerProvider()
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def _events(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


async def test_one_recovery_is_one_trace_with_a_span_for_each_phase(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    local.poison(at_step=7)
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL, name="sft")
    finished = _ours(spans)
    assert [span.name for span in finished] == [
        names.SPAN_DETECT,
        names.SPAN_SELECT,
        names.SPAN_VALIDATE,
        names.SPAN_CREATE,
        names.SPAN_RESUME,
        names.SPAN_RECOVERY,
    ]
    root = finished[-1]
    assert root.parent is None
    assert root.context is not None
    for span in finished[:-1]:
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
    assert root.attributes is not None
    assert root.attributes[names.RUN] == "sft"
    assert root.attributes[names.FAULT_KIND] == "request_failed"
    assert root.attributes[names.FAULT_DETECTED_BY] == "call"
    assert root.attributes[names.RUN_ID] == supervisor.runs[0].segments[0].run_id
    assert root.status.status_code is not StatusCode.ERROR
    assert _events(root) == [names.EVENT_DETECTED, names.EVENT_STARTED]
    by_name = {span.name: span for span in finished}
    assert _events(by_name[names.SPAN_VALIDATE]) == [names.EVENT_CHECKPOINT_SELECTED]
    assert _events(by_name[names.SPAN_CREATE]) == [names.EVENT_CLIENT_CREATED]
    assert _events(by_name[names.SPAN_RESUME]) == [names.EVENT_COMPLETED]
    resume = by_name[names.SPAN_RESUME].attributes
    assert resume is not None
    assert resume[names.REPLAYED_STEPS] == supervisor.runs[0].recoveries[0].replayed_steps


async def test_a_run_given_up_is_one_trace_with_every_attempt_and_its_error(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    local.poison(at_step=7)
    local.inject(FaultRule("fail", request="load_weights", times=3))
    clock = InstantClock(poll_interval_s=30.0)
    with pytest.raises(RecoveryExhausted):
        async with Supervisor(policy(), clock=clock.clock) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    finished = _ours(spans)
    root = finished[-1]
    assert {span.context.trace_id for span in finished if span.context} == {
        root.context.trace_id if root.context else 0
    }
    created = [span for span in finished if span.name == names.SPAN_CREATE]
    assert [span.status.status_code for span in created] == [StatusCode.ERROR] * 3
    assert all(
        span.attributes and span.attributes[names.ERROR_TYPE] == "RequestFailedError"
        for span in created
    )
    assert [span.name for span in finished].count(names.SPAN_BACKOFF) == 2
    assert _events(root).count(names.EVENT_FAILED) == 3
    assert _events(root)[-1] == names.EVENT_EXHAUSTED


async def test_what_a_callback_raises_is_on_the_span(
    local: LocalTinker, spans: InMemorySpanExporter
) -> None:
    def raises(*_: object) -> None:
        raise RuntimeError("the callback's own trouble")

    local.poison(at_step=7)
    async with Supervisor(policy(on_recovery=raises)) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    (resume,) = (span for span in _ours(spans) if span.name == names.SPAN_RESUME)
    assert "exception" in _events(resume)


async def test_a_status_that_cannot_be_read_is_told_of_and_the_run_left_alone(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is good for the SDK's clients and not for ours: the service refuses each poll."""
    told: list[RecoveryEvent] = []

    async def main() -> None:
        async with Supervisor(
            policy(poll_interval_s=0.01), service=local.service, on_event=told.append
        ) as supervisor:
            assert supervisor._reader is not None
            monkeypatch.setattr(supervisor._reader.http._http, "_auth", None)
            async for attempt in supervisor.attempts(base_model=MODEL, name="sft"):
                async with attempt:
                    while not any(event.name == names.EVENT_POLL_ERROR for event in told):
                        await train(attempt, steps=attempt.client.step + 1)
        assert supervisor.runs[0].recoveries == []

    await main()
    error = next(event for event in told if event.name == names.EVENT_POLL_ERROR)
    assert error.run == "sft"
    assert "HTTP 401" in error.message


async def test_the_api_key_appears_in_no_log_no_span_no_event_and_no_repr(
    local: LocalTinker, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[RecoveryEvent] = []
    caplog.set_level(logging.DEBUG, "tinker_recovery")
    local.poison(at_step=7)
    local.inject(FaultRule("fail", request="load_weights", times=3))
    clock = InstantClock(poll_interval_s=0.01)
    with pytest.raises(RecoveryExhausted) as caught:
        async with Supervisor(
            policy(poll_interval_s=0.01), on_event=told.append, clock=clock.clock
        ) as supervisor:
            reader = supervisor._reader
            await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    assert reader is not None
    shown = "\n".join(
        [
            caplog.text,
            repr(told),
            repr(caught.value),
            str(caught.value),
            repr(reader),
            repr(reader.http.endpoint),
            repr(reader.http._http.auth),
            repr(vars(supervisor)),
            *(span.to_json() for span in _ours(spans)),
        ]
    )
    assert local.api_key not in shown
    assert "recovery.exhausted" in shown
