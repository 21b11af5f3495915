"""Export over OTLP, on the wire: what a collector is told, and what happens without one."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import anyio.to_thread
import pytest
from _receiver import RECEIVERS, Received, grpc_receiver, http_receiver
from inspection import forget_providers, set_tracer_provider
from loops import MODEL, SEED, InstantClock, batch, policy, train, undisturbed_state
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tinker_recovery import RecoveryExhausted, Supervisor, UsageError
from tinker_recovery.telemetry import configure_metrics, configure_tracing, metrics, names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12
TOKEN = "sekret-token-of-the-collector"  # noqa: S105 - made up
CLOSED = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture
def no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which no provider is set yet; put back in the end."""
    forget_providers(monkeypatch)


@pytest.fixture(params=["grpc", "http/protobuf"])
def receiver(request: pytest.FixtureRequest) -> Iterator[tuple[str, Received]]:
    with RECEIVERS[request.param]() as received:
        yield request.param, received


def _named(spans: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [span for span in spans if span["name"] == name]


@pytest.mark.usefixtures("no_provider")
async def test_a_collector_is_told_one_incident_whole(
    local: LocalTinker, receiver: tuple[str, Received], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, parents, links, attributes, status and resource, as they were on the wire."""
    protocol, received = receiver
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab")
    export = configure_tracing(
        received.endpoint,
        protocol=protocol,  # type: ignore[arg-type]  # one of the two, as the fixture says
        service_name="my-training",
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    local.poison(at_step=7)
    local.inject(FaultRule("fail", request="load_weights"))
    clock = InstantClock(poll_interval_s=30.0)
    async with Supervisor(policy(canary=batch(3)), clock=clock.clock) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL, name="sft")
    assert await anyio.to_thread.run_sync(export.shutdown)
    (run,) = supervisor.runs
    assert received.headers["authorization"] == f"Bearer {TOKEN}"
    spans = [span for span in received.spans() if span["scope"] == names.SCOPE]

    for span in spans:
        assert span["resource"]["service.name"] == "my-training"
        assert span["resource"]["deployment.environment.name"] == "lab"
        assert span["resource"]["telemetry.sdk.language"] == "python"
        assert span["end"] >= span["start"]
    (root,) = _named(spans, "recovery")
    children = [span for span in spans if span["trace"] == root["trace"] and span is not root]
    assert [span["name"] for span in children] == [
        "recovery.detect",
        "recovery.select",
        "recovery.validate",
        "recovery.create_client",
        "recovery.backoff",
        "recovery.select",
        "recovery.validate",
        "recovery.create_client",
        "recovery.verify",
        "recovery.resume",
    ]
    assert root["parent"] == ""
    assert {span["parent"] for span in children} == {root["id"]}
    assert [span["name"] for span in spans if span["error"]] == ["recovery.create_client"]
    assert children[3]["error"]
    assert children[3]["attributes"]["error.type"] == "RequestFailedError"
    assert "exception" in children[3]["events"]

    first, second = run.segments
    (start,) = _named(spans, "run.start")
    old, new = _named(spans, "run.segment")
    (end,) = _named(spans, "run.end")
    assert root["links"] == {"replaced_segment": old["id"], "run_start": start["id"]}
    assert new["links"] == {"run_start": start["id"], "recovered_by": root["id"]}
    assert end["links"] == {
        "run_start": start["id"],
        "last_segment": new["id"],
        "previous_recovery": root["id"],
    }
    assert root["attributes"] == {
        "tinker_recovery.run.name": "sft",
        "tinker_recovery.run.lineage": run.lineage,
        "tinker_recovery.tinker_run.id": first.run_id,
        "tinker_recovery.attempt.number": 1,
        "tinker_recovery.fault.kind": "request_failed",
        "tinker_recovery.fault.reason": root["attributes"]["tinker_recovery.fault.reason"],
        "tinker_recovery.fault.detected_by": "call",
        "tinker_recovery.fault.step": 8,
        "tinker_recovery.fault.verdict": "recover",
        "tinker_recovery.outcome": "recovered",
    }
    assert children[7]["attributes"] == {
        "tinker_recovery.recovery.try": 2,
        "tinker_recovery.checkpoint.path": second.parent,
        "tinker_recovery.checkpoint.step": 5,
        "tinker_recovery.recovery.restore_optimizer": True,
        "tinker_recovery.tinker_run.id": second.run_id,
    }
    assert children[9]["attributes"] == {
        "tinker_recovery.recovery.try": 2,
        "tinker_recovery.recovery.replayed_steps": 3,
        "tinker_recovery.checkpoint.step": 5,
        "tinker_recovery.attempt.number": 2,
    }


@pytest.mark.usefixtures("no_provider")
@pytest.mark.parametrize("requests", [False, True])
async def test_the_sdks_own_requests_are_left_out_unless_asked_for_or_part_of_a_users_span(
    local: LocalTinker, *, requests: bool
) -> None:
    """Four traces of one request a step would bury the others."""
    with grpc_receiver() as received:
        with configure_tracing(received.endpoint, requests=requests):
            tracer = trace.get_tracer("the user's")
            with tracer.start_as_current_span("mine") as mine:
                tracer.start_span("POST", kind=trace.SpanKind.CLIENT).end()
            async with Supervisor(policy()) as supervisor:
                await supervisor.run(functools.partial(train, steps=2), base_model=MODEL)
        posts = [span for span in received.spans() if span["name"].startswith("POST")]
        nested = [span for span in posts if span["parent"]]
    assert [span["parent"] for span in nested] == [f"{mine.get_span_context().span_id:016x}"]
    assert bool(len(posts) - len(nested)) is requests
    told_apart = {span["name"] for span in posts} - {"POST"}
    if requests:
        assert {
            "POST /api/v1/forward_backward",
            "POST /api/v1/optim_step",
            "POST /api/v1/sessions/{id}/finish",
        } <= told_apart
    assert _named(received.spans(), "run.segment")
    assert local.runs()


@pytest.mark.usefixtures("no_provider")
async def test_training_is_the_same_with_the_collector_down(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:

    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=7)
    with configure_tracing(CLOSED, headers={"x-key": TOKEN}, flush_s=0.1):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(
                functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
            )
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected
    assert "were not all delivered to http://127.0.0.1:9 (grpc)" in caplog.text
    assert TOKEN not in caplog.text


_PROCESS = """
import atexit, gc, sys, time
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from tinker_recovery.telemetry import configure_tracing

# Called last, since it is registered first: by then every export has had its time.
atexit.register(lambda: print(spans, time.monotonic() - ended))
for endpoint in sys.argv[1:]:
    for protocol in ("grpc", "http/protobuf"):
        configure_tracing(endpoint, protocol=protocol, flush_s=0.25)
tracer = trace.get_tracer("test")
for _ in range(12_000):
    tracer.start_span("many").end()
spans = sum(isinstance(each, ReadableSpan) for each in gc.get_objects())
ended = time.monotonic()
"""


def test_without_a_collector_the_queue_is_bounded_and_the_process_exits_within_its_deadline() -> (
    None
):
    """Where nothing listens, and where something listens and never answers; gRPC and HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", _PROCESS, CLOSED, mute],
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        )
    spans, exit_s = done.stdout.split()
    # Four queues of what the SDK keeps at most, each with the batch that is on its way.
    assert int(spans) <= 4 * (2048 + 512)
    # 0.25 s each, and what a busy machine adds; the exporters' own patience is 10 s each.
    assert float(exit_s) < 4 * 0.25 + 3.0


def test_a_process_that_ends_delivers_what_it_has() -> None:
    program = (
        "import sys; from opentelemetry import trace\n"
        "from tinker_recovery.telemetry import configure_tracing\n"
        "configure_tracing(); trace.get_tracer('test').start_span('last words').end()"
    )
    with http_receiver() as received:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", program],
            env=os.environ
            | {
                "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={TOKEN}",
                "OTEL_SERVICE_NAME": "from-the-environment",
            },
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    (span,) = received.spans()
    assert span["name"] == "last words"
    assert span["resource"]["service.name"] == "from-the-environment"
    assert received.headers["api-key"] == TOKEN
    assert done.stderr == ""


def test_a_provider_of_the_users_gets_our_exporter_and_outlives_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "theirs"}), shutdown_on_exit=False)
    theirs = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(theirs))
    set_tracer_provider(monkeypatch, provider)
    with grpc_receiver() as received:
        with configure_tracing(received.endpoint, service_name="ours"):
            trace.get_tracer("test").start_span("both").end()
        trace.get_tracer("test").start_span("theirs alone").end()
    assert [span["name"] for span in received.spans()] == ["both"]
    assert [span.name for span in theirs.get_finished_spans()] == ["both", "theirs alone"]
    assert "the traces are those of service 'theirs', and not of 'ours'" in caplog.text
    provider.shutdown()


@pytest.mark.usefixtures("no_provider")
def test_a_second_export_in_one_process_works_once_the_first_is_shut_down() -> None:
    for _ in range(2):
        with grpc_receiver() as received, configure_tracing(received.endpoint) as export:
            trace.get_tracer("test").start_span("one").end()
            assert export.flush()
            assert [span["name"] for span in received.spans()] == ["one"]
            assert export.shutdown()
            assert export.shutdown(), "once shut down, the call does nothing"


@pytest.mark.usefixtures("no_provider")
def test_metrics_go_out_at_an_interval_and_once_more_at_the_end(
    receiver: tuple[str, Received],
) -> None:
    protocol, received = receiver
    with configure_metrics(
        received.endpoint,
        protocol=protocol,  # type: ignore[arg-type]  # one of the two, as the fixture says
        service_name="my-training",
        headers={"x-key": TOKEN},
        interval_s=3600.0,
    ) as export:
        metrics.kept("sft", 7)
        assert export.flush()
        assert len(received.metrics) == 1
        metrics.kept("sft", 6)
        with pytest.raises(UsageError, match="a meter provider is set already"):
            configure_metrics(received.endpoint)
    assert received.headers["x-key"] == TOKEN
    (resource,) = received.metrics[-1].resource_metrics
    assert "my-training" in str(resource.resource)
    told = {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
    (point,) = told["tinker_recovery.checkpoint.kept"].gauge.data_points
    assert point.as_int == 6


@pytest.mark.usefixtures("no_provider")
@pytest.mark.parametrize("protocol", RECEIVERS)
def test_metrics_without_a_collector_end_within_their_deadline(
    protocol: Literal["grpc", "http/protobuf"], caplog: pytest.LogCaptureFixture
) -> None:
    export = configure_metrics(CLOSED, protocol=protocol)
    metrics.kept("sft", 1)
    began = time.monotonic()
    assert not export.shutdown(0.2)
    assert time.monotonic() - began < 0.2 + 2.0
    assert "the last metrics were not all delivered" in caplog.text


@pytest.mark.usefixtures("no_provider")
@pytest.mark.parametrize(
    "variable", [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_the_environment_can_turn_it_off(
    monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    with configure_tracing() as export:
        assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        assert "turned off" in repr(export)


@pytest.mark.usefixtures("no_provider")
def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
    monkeypatch.setitem(sys.modules, exporter, None)
    with pytest.raises(UsageError, match=r'pip install "tinker-recovery\[otel\]"'):
        configure_tracing()


@pytest.mark.usefixtures("no_provider")
async def test_no_header_of_the_collectors_and_no_api_key_leaves_by_any_other_way(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    """Through a run that is given up, with errors that quote the key and a signed address."""
    caplog.set_level("DEBUG")
    signed = "https://store/x?X-Amz-Signature=0123abcd"
    local.poison(at_step=7)
    local.inject(
        FaultRule(
            "fail",
            request="load_weights",
            times=3,
            message=f"denied for {local.api_key} at {signed}",
        )
    )
    with grpc_receiver() as received:
        with configure_tracing(received.endpoint, headers={"x-key": TOKEN}) as export:
            with pytest.raises(RecoveryExhausted) as caught:
                async with Supervisor(
                    policy(), clock=InstantClock(poll_interval_s=30.0).clock
                ) as supervisor:
                    await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
            shown = repr(export) + repr(vars(export)) + str(caught.value)
        assert received.headers["x-key"] == TOKEN
    ours = [record.getMessage() for record in caplog.records if "tinker_reco" in record.name]
    told = shown + "".join(ours) + "".join(map(str, received.traces))
    assert "X-Amz-Signature=***" in told
    for secret in (TOKEN, local.api_key, "0123abcd"):
        assert secret not in told
