"""Where telemetry goes, by arguments and the standard variables: a table of decisions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tinker_recovery import UsageError
from tinker_recovery.telemetry.otlp_target import Target, is_off, resolve

SECRET = "s3cr3t,value"  # noqa: S105 - made up
ALL = "OTEL_EXPORTER_OTLP_"
OWN = "OTEL_EXPORTER_OTLP_TRACES_"


def _resolve(
    environment: Mapping[str, str] | None = None,
    *,
    endpoint: str | None = None,
    protocol: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Target:
    return resolve(
        "traces",
        endpoint=endpoint,
        protocol=protocol,
        headers=headers,
        environment=environment or {},
    )


@pytest.mark.parametrize(
    ("environment", "endpoint", "protocol", "expected"),
    [
        ({}, None, None, ("grpc", "http://localhost:4317")),
        ({}, None, "http/protobuf", ("http/protobuf", "http://localhost:4318/v1/traces")),
        ({}, "http://jaeger:4317", None, ("grpc", "http://jaeger:4317")),
        ({}, "http://jaeger", None, ("grpc", "http://jaeger:4317")),
        ({}, "https://[::1]:4317/", None, ("grpc", "https://[::1]:4317")),
        # A collector's HTTP port is spoken to in HTTP.
        ({}, "http://jaeger:4318", None, ("http/protobuf", "http://jaeger:4318/v1/traces")),
        ({}, "http://a:1/v1/traces", None, ("http/protobuf", "http://a:1/v1/traces")),
        ({}, "https://a/otlp/", "http/protobuf", ("http/protobuf", "https://a/otlp/v1/traces")),
        ({ALL + "ENDPOINT": "http://env:4317"}, None, None, ("grpc", "http://env:4317")),
        ({ALL + "ENDPOINT": "http://env:4317"}, "http://a:1", None, ("grpc", "http://a:1")),
        (
            {ALL + "ENDPOINT": "http://env:1", ALL + "PROTOCOL": "http/protobuf"},
            None,
            None,
            ("http/protobuf", "http://env:1/v1/traces"),
        ),
        (
            # The signal's own variables come first, and its address is taken as it stands.
            {
                ALL + "ENDPOINT": "http://env:1",
                ALL + "PROTOCOL": "grpc",
                OWN + "ENDPOINT": "http://own:2/in",
                OWN + "PROTOCOL": "http/protobuf",
            },
            None,
            None,
            ("http/protobuf", "http://own:2/in"),
        ),
        (
            {OWN + "ENDPOINT": " ", ALL + "ENDPOINT": ""},
            None,
            None,
            ("grpc", "http://localhost:4317"),
        ),
    ],
)
def test_arguments_come_before_the_signals_variables_and_those_before_the_generic_ones(
    environment: dict[str, str],
    endpoint: str | None,
    protocol: str | None,
    expected: tuple[str, str],
) -> None:
    target = _resolve(environment, endpoint=endpoint, protocol=protocol)
    assert (target.protocol, target.endpoint) == expected


def test_headers_of_the_environment_are_decoded_and_arguments_come_before_them() -> None:
    environment = {ALL + "HEADERS": "Authorization=Basic%20abc%3D%2C, x-team=ml ,"}
    target = _resolve(environment, headers={"X-Team": "rl"})
    assert target.headers == {"authorization": "Basic abc=,", "x-team": "rl"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"endpoint": "localhost:4317"}, "endpoint='localhost:4317' is not allowed: http://HOST"),
        ({"endpoint": "ftp://a"}, "endpoint='ftp://a' is not allowed"),
        ({"endpoint": "http://a:99999"}, "endpoint is no address"),
        ({"endpoint": "http://a:4317/x", "protocol": "grpc"}, "an address without a path"),
        ({"endpoint": f"http://me:{SECRET}@a:4317"}, "credentials as headers"),
        ({"endpoint": f"http://a:4318/v1/traces?key={SECRET}"}, "credentials as headers"),
        ({"protocol": "http/json"}, "protocol='http/json' is not allowed: one of grpc and http"),
        ({"headers": {"x-key": f"{SECRET}\r\nother: 1"}}, "the value of header 'x-key'"),
        ({"headers": {"x-key": ""}}, "the value of header 'x-key'"),
        ({"headers": {"x key": SECRET}}, "a header's name is not one"),
        ({"headers": {"grpc-timeout": SECRET}}, "'grpc-timeout' is reserved by gRPC"),
        ({"environment": {ALL + "HEADERS": SECRET}}, ALL + "HEADERS: entry 1 is not NAME=VALUE"),
        ({"environment": {ALL + "PROTOCOL": "udp"}}, ALL + "PROTOCOL='udp' is not allowed"),
    ],
)
def test_what_cannot_work_is_refused_at_once_by_name_and_without_showing_a_secret(
    given: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        _resolve(**given)  # type: ignore[arg-type]  # arguments of every kind, some of them wrong
    assert says in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_header_is_in_no_repr() -> None:
    target = _resolve(headers={"x-key": SECRET})
    assert "s3cr3t" not in f"{target!r} {target}"


@pytest.mark.parametrize(
    ("environment", "off"),
    [
        ({}, False),
        ({"OTEL_SDK_DISABLED": "TRUE "}, True),
        ({"OTEL_SDK_DISABLED": "0"}, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_METRICS_EXPORTER": "none"}, False),
    ],
)
def test_the_environment_turns_it_off(environment: dict[str, str], *, off: bool) -> None:
    assert is_off("traces", environment) is off
