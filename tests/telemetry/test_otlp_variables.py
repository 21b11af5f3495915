"""What is exported where, by arguments and the OTEL_* variables: at real receivers."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio.to_thread
import pytest
from _receiver import Received, grpc_receiver, http_receiver
from inspection import forget_providers
from loops import policy
from opentelemetry import metrics as otel_metrics
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from tinker_recovery import Supervisor, UsageError
from tinker_recovery.telemetry import (
    Export,
    configure_metrics,
    configure_tracing,
    environment,
    metrics,
)
from tinker_recovery.telemetry.otlp import request_name
from tinker_recovery.testing import LocalTinker

SECRET = "s3cr3t,value"  # noqa: S105 - made up
ALL = "OTEL_EXPORTER_OTLP_"
OWN = "OTEL_EXPORTER_OTLP_TRACES_"

Receivers = Mapping[str, Received]


@pytest.fixture(autouse=True)
def no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which no provider is set yet; put back in the end."""
    forget_providers(monkeypatch)


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    """One that speaks gRPC, one that speaks HTTP."""
    with grpc_receiver() as grpc, http_receiver() as http:
        yield {"grpc": grpc, "http/protobuf": http}


def _set(
    monkeypatch: pytest.MonkeyPatch,
    variables: Mapping[str, str],
    receivers: Receivers | None = None,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, _filled(value, receivers))


def _filled(value: str, receivers: Receivers | None) -> str:
    """``GRPC`` and ``HTTP`` stand for a receiver's host and port."""
    for name, key in (("GRPC", "grpc"), ("HTTP", "http/protobuf")):
        if receivers is not None:
            value = value.replace(name, receivers[key].endpoint.removeprefix("http://"))
    return value


def _export_one(**given: Any) -> Export:
    with configure_tracing(**given) as export:
        trace.get_tracer("test").start_span("one").end()
    return export


@pytest.mark.parametrize(
    ("variables", "given", "expected"),
    [
        ({}, {}, "http://localhost:4317 (grpc)"),
        ({OWN + "ENDPOINT": " ", ALL + "ENDPOINT": ""}, {}, "http://localhost:4317 (grpc)"),
        ({}, {"protocol": "http/protobuf"}, "http://localhost:4318/v1/traces (http/protobuf)"),
        ({}, {"endpoint": "http://jaeger:4317"}, "http://jaeger:4317 (grpc)"),
        ({}, {"endpoint": "http://jaeger"}, "http://jaeger:4317 (grpc)"),
        ({}, {"endpoint": "https://[::1]:4317/"}, "https://[::1]:4317 (grpc)"),
        # A collector's HTTP port is spoken to in HTTP.
        ({}, {"endpoint": "http://a:4318"}, "http://a:4318/v1/traces (http/protobuf)"),
        ({}, {"endpoint": "http://a:1/v1/traces"}, "http://a:1/v1/traces (http/protobuf)"),
        (
            {},
            {"endpoint": "https://a/otlp/", "protocol": "http/protobuf"},
            "https://a/otlp/v1/traces (http/protobuf)",
        ),
        ({ALL + "ENDPOINT": "http://env:4317"}, {}, "http://env:4317 (grpc)"),
        ({ALL + "ENDPOINT": "http://env:4317"}, {"endpoint": "http://a:1"}, "http://a:1 (grpc)"),
        # Without a scheme, as gRPC takes it and OTEL_EXPORTER_OTLP_INSECURE decides.
        ({ALL + "ENDPOINT": "env:4317"}, {}, "env:4317 (grpc)"),
        (
            {ALL + "ENDPOINT": "http://env:1", ALL + "PROTOCOL": "http/protobuf"},
            {},
            "http://env:1/v1/traces (http/protobuf)",
        ),
        (
            # The signal's own variables come first, and its address is taken as it stands.
            {
                ALL + "ENDPOINT": "http://env:1",
                ALL + "PROTOCOL": "grpc",
                OWN + "ENDPOINT": "http://own:2/in/",
                OWN + "PROTOCOL": "http/protobuf",
            },
            {},
            "http://own:2/in/ (http/protobuf)",
        ),
    ],
)
def test_arguments_come_before_the_signals_variables_and_those_before_the_generic_ones(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    given: dict[str, Any],
    expected: str,
) -> None:
    _set(monkeypatch, variables)
    with configure_tracing(**given) as export:
        assert repr(export) == f"<Export of traces to {expected}>"
        assert export.endpoint == expected.split(maxsplit=1)[0]


@pytest.mark.parametrize(
    ("variables", "given", "protocol", "path"),
    [
        ({ALL + "ENDPOINT": "http://GRPC"}, {}, "grpc", ""),
        ({ALL + "ENDPOINT": "GRPC", ALL + "INSECURE": "true"}, {}, "grpc", ""),
        (
            {ALL + "ENDPOINT": "https://a", ALL + "INSECURE": "false"},
            {"endpoint": "GRPC"},
            "grpc",
            "",
        ),
        (
            {ALL + "ENDPOINT": "http://HTTP/", ALL + "PROTOCOL": "http/protobuf"},
            {},
            "http/protobuf",
            "/v1/traces",
        ),
        (
            {ALL + "ENDPOINT": "http://GRPC", OWN + "ENDPOINT": "http://HTTP/v1/traces"},
            {},
            "http/protobuf",
            "/v1/traces",
        ),
        (
            {ALL + "ENDPOINT": "http://GRPC", OWN + "PROTOCOL": "grpc"},
            {"endpoint": "HTTP", "protocol": "http/protobuf"},
            "http/protobuf",
            "/v1/traces",
        ),
    ],
)
def test_spans_arrive_where_the_variables_say_or_else_the_arguments_before_them(
    monkeypatch: pytest.MonkeyPatch,
    receivers: Receivers,
    variables: dict[str, str],
    given: dict[str, str],
    protocol: str,
    path: str,
) -> None:
    _set(monkeypatch, variables, receivers)
    if "endpoint" in given:
        given = given | {"endpoint": "http://" + _filled(given["endpoint"], receivers)}
    export = _export_one(**given)
    arrived = {name: [span["name"] for span in each.spans()] for name, each in receivers.items()}
    assert arrived == {"grpc": [], "http/protobuf": []} | {protocol: ["one"]}
    assert receivers[protocol].path == path
    assert export.lost == 0


def test_what_a_collector_does_not_take_is_counted_and_the_count_stays(
    monkeypatch: pytest.MonkeyPatch, receivers: Receivers
) -> None:
    """The signal's own address is taken as it stands, and nothing is there."""
    _set(
        monkeypatch,
        {OWN + "ENDPOINT": "http://HTTP/in", OWN + "PROTOCOL": "http/protobuf"},
        receivers,
    )
    with configure_tracing() as export:
        for _ in range(3):
            trace.get_tracer("test").start_span("one").end()
        assert not export.flush()
        assert receivers["http/protobuf"].path == "/in"
        assert export.lost == 3
        trace.get_tracer("test").start_span("one").end()
    assert export.lost == 4
    assert export.flush(), "once shut down, there is nothing to send"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_headers_of_the_environment_are_decoded_and_arguments_come_before_them(
    monkeypatch: pytest.MonkeyPatch, receivers: Receivers, protocol: str
) -> None:
    given = "Authorization=Basic%20abc%3D%2C, x-team=ml ,"
    _set(monkeypatch, {ALL + "HEADERS": given, OWN + "PROTOCOL": protocol})
    _export_one(endpoint=receivers[protocol].endpoint, headers={"X-Team": "rl"})
    received = receivers[protocol]
    assert len(received.spans()) == 1
    assert received.headers["authorization"] == "Basic abc=,"
    assert received.headers["x-team"] == "rl"


def test_the_sdk_reads_its_own_variables(
    monkeypatch: pytest.MonkeyPatch, receivers: Receivers
) -> None:
    _set(
        monkeypatch,
        {
            ALL + "COMPRESSION": "gzip",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=attribute,deployment.environment.name=lab",
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "1.0",
        },
    )
    _export_one(endpoint=receivers["http/protobuf"].endpoint, protocol="http/protobuf")
    (span,) = receivers["http/protobuf"].spans()
    assert receivers["http/protobuf"].headers["content-encoding"] == "gzip"
    assert span["resource"]["service.name"] == "attribute"
    assert span["resource"]["deployment.environment.name"] == "lab"
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    assert "TraceIdRatioBased{1.0}" in provider.sampler.get_description()


def test_a_sampler_of_the_environment_that_takes_nothing_has_nothing_sent(
    monkeypatch: pytest.MonkeyPatch, receivers: Receivers
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    export = _export_one(endpoint=receivers["grpc"].endpoint)
    assert receivers["grpc"].traces == []
    assert export.lost == 0


@pytest.mark.parametrize(("service", "expected"), [(None, "tinker-recovery"), ("given", "given")])
def test_the_service_is_ours_where_nothing_names_one(
    receivers: Receivers, service: str | None, expected: str
) -> None:
    _export_one(endpoint=receivers["grpc"].endpoint, service_name=service)
    (span,) = receivers["grpc"].spans()
    assert span["resource"]["service.name"] == expected


def test_metrics_have_variables_of_their_own(
    monkeypatch: pytest.MonkeyPatch, receivers: Receivers
) -> None:
    _set(
        monkeypatch,
        {
            ALL + "ENDPOINT": "http://GRPC",
            OWN + "PROTOCOL": "grpc",
            ALL + "METRICS_ENDPOINT": "http://HTTP/v1/metrics",
            ALL + "METRICS_PROTOCOL": "http/protobuf",
            ALL + "METRICS_HEADERS": "x-team=ml",
        },
        receivers,
    )
    with configure_metrics():
        metrics.kept("sft", 7)
    assert receivers["grpc"].metrics == []
    assert len(receivers["http/protobuf"].metrics) == 1
    assert receivers["http/protobuf"].path == "/v1/metrics"
    assert receivers["http/protobuf"].headers["x-team"] == "ml"


_MANY = "is not allowed: one of grpc and http/protobuf"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"endpoint": "localhost:4317"}, "endpoint='localhost:4317' is not allowed: http://HOST"),
        ({"endpoint": ""}, "endpoint='' is not allowed: http://HOST"),
        ({"endpoint": "ftp://a"}, "endpoint='ftp://a' is not allowed"),
        ({"endpoint": "http://a:99999"}, "endpoint='http://a:99999' is not allowed"),
        ({"endpoint": "http://a:4317/x", "protocol": "grpc"}, "with gRPC no path"),
        ({"endpoint": f"http://me:{SECRET}@a:4317"}, "credentials go into headers"),
        ({"endpoint": f"http://a:4318/v1/traces?key={SECRET}"}, "credentials go into headers"),
        ({"protocol": "http/json"}, f"protocol='http/json' {_MANY}"),
        ({"protocol": ""}, f"protocol='' {_MANY}"),
        ({"headers": {"x-key": f"{SECRET}\r\nother: 1"}}, "the value of header 'x-key'"),
        ({"headers": {"x-key": ""}}, "the value of header 'x-key'"),
        ({"headers": {"x key": SECRET}}, "a header's name is not allowed: letters"),
        ({"headers": {"grpc-timeout": SECRET}}, "not grpc-..."),
        ({"headers": {"x-bin": SECRET}}, "or ...-bin"),
        ({"flush_s": -1}, "flush_s=-1 is not allowed"),
        ({ALL + "ENDPOINT": f"http://me:{SECRET}@a"}, f"{ALL}ENDPOINT is not allowed"),
        ({OWN + "ENDPOINT": f"me:{SECRET}@a:1"}, f"{OWN}ENDPOINT is not allowed"),
        ({OWN + "ENDPOINT": "http://a:99999"}, f"{OWN}ENDPOINT='http://a:99999' is not allowed"),
        ({ALL + "HEADERS": SECRET}, ALL + "HEADERS is not allowed: NAME=VALUE"),
        ({ALL + "HEADERS": f'x-key="{SECRET}"'}, ALL + "HEADERS is not allowed: NAME=VALUE"),
        ({OWN + "HEADERS": "x-key=s3cr3t%0Avalue"}, "the value of header 'x-key'"),
        ({ALL + "PROTOCOL": "udp"}, f"{ALL}PROTOCOL='udp' {_MANY}"),
    ],
)
def test_what_cannot_work_is_refused_at_once_by_name_and_without_showing_a_secret(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    given: dict[str, Any],
    says: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    variables = {name: value for name, value in given.items() if name.startswith("OTEL_")}
    _set(monkeypatch, variables)
    with pytest.raises(UsageError) as caught:
        configure_tracing(**{name: given[name] for name in given.keys() - variables})
    assert says in str(caught.value)
    assert "s3cr3t" not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def test_a_header_is_in_no_repr() -> None:
    with configure_tracing("http://127.0.0.1:9", headers={"x-key": "s3cr3t"}) as export:
        assert "s3cr3t" not in f"{export!r} {export} {vars(export)}"


@pytest.mark.parametrize(
    ("variables", "off"),
    [
        ({}, False),
        ({"OTEL_SDK_DISABLED": "TRUE "}, True),
        ({"OTEL_SDK_DISABLED": "0"}, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_METRICS_EXPORTER": "none"}, False),
    ],
)
def test_the_environment_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, receivers: Receivers, variables: dict[str, str], *, off: bool
) -> None:
    _set(monkeypatch, variables)
    export = _export_one(endpoint=receivers["grpc"].endpoint)
    assert [span["name"] for span in receivers["grpc"].spans()] == ([] if off else ["one"])
    assert export.endpoint == (None if off else receivers["grpc"].endpoint)
    assert export.flush()
    assert export.shutdown()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/api/v1/optim_step?a=1", "GET /api/v1/optim_step"),
        ("https://h:8/p/v2/sessions/session-0a1/finish", "GET /p/v2/sessions/{id}/finish"),
        ("http://h/api/v1/training_runs/a%3Ab/weights", "GET /api/v1/training_runs/{id}/weights"),
        ("http://h", "GET"),
        ("", "GET"),
    ],
)
def test_a_request_is_named_by_its_method_and_its_path_without_ids(url: str, name: str) -> None:
    assert request_name("GET", url) == name


# By the environment alone


async def _enter_and_leave() -> None:
    async with Supervisor(policy(), journal=None):
        metrics.kept("sft", 3)
        trace.get_tracer("test").start_span("one").end()


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Export]]:
    """What is set up while the test lasts; shut down in the end."""
    made: list[Export] = []
    for name in ("configure_tracing", "configure_metrics"):
        configure = getattr(environment, name)
        monkeypatch.setattr(environment, name, functools.partial(_noted, configure, made))
    yield made
    for each in made:
        each.shutdown()


def _noted(configure: Callable[[], Export], made: list[Export]) -> Export:
    made.append(configure())
    return made[-1]


async def test_with_an_endpoint_in_the_environment_a_supervisor_exports_traces_and_metrics(
    local: LocalTinker,
    receivers: Receivers,
    monkeypatch: pytest.MonkeyPatch,
    exports: list[Export],
) -> None:
    variables = {ALL + "ENDPOINT": "http://HTTP", ALL + "PROTOCOL": "http/protobuf"}
    _set(monkeypatch, variables, receivers)
    await _enter_and_leave()
    await _enter_and_leave()
    assert len(exports) == 2, "once for the process"
    for each in exports:
        await anyio.to_thread.run_sync(each.shutdown)
    received = receivers["http/protobuf"]
    assert [span["name"] for span in received.spans()].count("one") == 2
    assert metrics.CHECKPOINT_KEPT in str(received.metrics)
    assert local.base_url


@pytest.mark.parametrize(
    "off",
    [
        {"TINKER_RECOVERY_OTEL": "0"},
        {"TINKER_RECOVERY_OTEL": " Off"},
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
    ],
)
async def test_each_switch_turns_that_off(
    local: LocalTinker,
    receivers: Receivers,
    monkeypatch: pytest.MonkeyPatch,
    exports: list[Export],
    off: dict[str, str],
) -> None:
    _set(monkeypatch, {ALL + "ENDPOINT": "http://GRPC", **off}, receivers)
    await _enter_and_leave()
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert all(each.endpoint is None for each in exports)
    assert local.base_url


async def test_providers_of_the_program_stay_as_they_are(
    local: LocalTinker,
    receivers: Receivers,
    monkeypatch: pytest.MonkeyPatch,
    exports: list[Export],
) -> None:
    _set(monkeypatch, {ALL + "ENDPOINT": "http://GRPC"}, receivers)
    tracing, meters = TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False)
    trace.set_tracer_provider(tracing)
    otel_metrics.set_meter_provider(meters)
    await _enter_and_leave()
    assert trace.get_tracer_provider() is tracing
    assert otel_metrics.get_meter_provider() is meters
    assert exports == []
    assert local.base_url


async def test_a_variable_that_cannot_work_is_a_warning_and_ends_nothing(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _set(monkeypatch, {OWN + "ENDPOINT": "ftp://nowhere"})
    await _enter_and_leave()
    (warning,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert warning.getMessage().startswith(f"traces are not exported: {OWN}ENDPOINT")
    assert local.base_url


async def test_without_the_extra_nothing_is_exported_and_no_one_is_disturbed(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _set(monkeypatch, {ALL + "ENDPOINT": "http://localhost:1"})
    for name in ("trace", "metric"):
        module = f"opentelemetry.exporter.otlp.proto.grpc.{name}_exporter"
        monkeypatch.setitem(sys.modules, module, None)
    await _enter_and_leave()
    assert "traces are not exported: exporting traces needs the OpenTelemetry SDK" in caplog.text
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert local.base_url


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
    ],
)
def test_a_variable_that_the_sdk_cannot_read_ends_no_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    made: list[Export] = []

    def noted(configure: Callable[..., Export]) -> None:
        made.append(configure(flush_s=0.0))

    for name in ("configure_tracing", "configure_metrics"):
        configure = functools.partial(noted, getattr(environment, name))
        monkeypatch.setattr(environment, name, configure)
    environment.export_by_environment()
    for export in made:
        export.shutdown(0.0)
    assert "are not exported: " in caplog.text


def test_a_provider_that_the_program_sets_later_takes_the_place_of_ours(
    monkeypatch: pytest.MonkeyPatch, receivers: Receivers, caplog: pytest.LogCaptureFixture
) -> None:
    _set(monkeypatch, {ALL + "ENDPOINT": "http://GRPC"}, receivers)
    made: list[Export] = []

    def noted(configure: Callable[..., Export]) -> None:
        made.append(configure(flush_s=0.0))

    for name in ("configure_tracing", "configure_metrics"):
        configure = functools.partial(noted, getattr(environment, name))
        monkeypatch.setattr(environment, name, configure)
    environment.export_by_environment()
    assert len(made) == 2
    tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False)
    trace.set_tracer_provider(tracers)
    otel_metrics.set_meter_provider(meters)
    assert trace.get_tracer_provider() is tracers
    assert otel_metrics.get_meter_provider() is meters
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    assert trace.get_tracer_provider() is tracers, "and that once, as ever"
    assert "Overriding of current MeterProvider" not in caplog.text
    for export in made:
        export.shutdown()
    meters.shutdown()
