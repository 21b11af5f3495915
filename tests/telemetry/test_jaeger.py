"""One incident through a real Jaeger v2: OTLP in, its query API out.

Runs where the binary ``jaeger`` is on PATH, which is started on free ports, or where
JAEGER_QUERY_URL says where one listens (with JAEGER_OTLP_ENDPOINT, unless it is port 4317 there).
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio.to_thread
import httpx
import pytest
from inspection import forget_providers
from loops import MODEL, policy, train

from tinker_recovery import Supervisor
from tinker_recovery.telemetry import configure_tracing
from tinker_recovery.testing import LocalTinker

BINARY = shutil.which("jaeger")
QUERY_URL = os.environ.get("JAEGER_QUERY_URL")

pytestmark = pytest.mark.skipif(
    not BINARY and not QUERY_URL,
    reason="no `jaeger` (v2) on PATH, and JAEGER_QUERY_URL is not set",
)

_CONFIG = """
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}
  telemetry: {{metrics: {{level: none}}}}
extensions:
  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 1000}}}}}}}}
  jaeger_query:
    storage: {{traces: memory}}
    http: {{endpoint: "127.0.0.1:{query}"}}
    grpc: {{endpoint: "127.0.0.1:{query_grpc}"}}
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: "127.0.0.1:{grpc}"}}
      http: {{endpoint: "127.0.0.1:{http}"}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"""


@dataclass(frozen=True)
class _Jaeger:
    query: str
    otlp: dict[str, str]


def _until(true: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "Jaeger does not answer"
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/v3/services").is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def jaeger(tmp_path: Path) -> Iterator[_Jaeger]:
    if QUERY_URL is not None:
        host = urlsplit(QUERY_URL).hostname
        grpc = os.environ.get("JAEGER_OTLP_ENDPOINT", f"http://{host}:4317")
        yield _Jaeger(QUERY_URL.rstrip("/"), {"grpc": grpc, "http/protobuf": f"http://{host}:4318"})
        return
    ports = dict.fromkeys(("query", "query_grpc", "grpc", "http"), 0)
    for name in ports:
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports[name] = free.getsockname()[1]
    config = tmp_path / "jaeger.yaml"
    config.write_text(_CONFIG.format(**ports))
    assert BINARY is not None
    with subprocess.Popen(  # noqa: S603 - found on PATH
        [BINARY, "--config", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            query = f"http://127.0.0.1:{ports['query']}"
            _until(lambda: _answers(query))
            yield _Jaeger(
                query,
                {
                    "grpc": f"http://127.0.0.1:{ports['grpc']}",
                    "http/protobuf": f"http://127.0.0.1:{ports['http']}",
                },
            )
        finally:
            process.kill()


def _found(jaeger: _Jaeger, service: str) -> list[dict[str, Any]]:
    """Every span of a service's traces, from /api/v3/traces."""
    now = datetime.now(UTC)
    reply = httpx.get(
        f"{jaeger.query}/api/v3/traces",
        params={
            "query.service_name": service,
            "query.start_time_min": (now - timedelta(hours=1)).isoformat(),
            "query.start_time_max": (now + timedelta(minutes=1)).isoformat(),
            "query.num_traces": "100",
        },
    )
    if not reply.is_success:  # 404 while there is nothing
        return []
    body = reply.json()
    return [
        span
        for resource in body.get("result", body)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def _attributes(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in attributes}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_jaeger_shows_an_incident_as_one_trace_that_leads_to_the_segment_it_replaced(
    local: LocalTinker,
    jaeger: _Jaeger,
    protocol: Literal["grpc", "http/protobuf"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget_providers(monkeypatch)
    service = f"test-{secrets.token_hex(4)}"
    export = configure_tracing(jaeger.otlp[protocol], protocol=protocol, service_name=service)
    local.poison(at_step=7)
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=12), base_model=MODEL, name="sft")
    assert await anyio.to_thread.run_sync(export.shutdown)

    def all_there() -> bool:
        return any(span["name"] == "run.end" for span in _found(jaeger, service))

    await anyio.to_thread.run_sync(_until, all_there)
    spans = _found(jaeger, service)
    (root,) = (span for span in spans if span["name"] == "recovery")
    children = [span for span in spans if span.get("parentSpanId") == root["spanId"]]
    assert {span["traceId"] for span in children} == {root["traceId"]}
    in_order = sorted(children, key=lambda span: int(span["startTimeUnixNano"]))
    assert [span["name"] for span in in_order] == [
        "recovery.detect",
        "recovery.select",
        "recovery.validate",
        "recovery.create_client",
        "recovery.resume",
    ]
    attributes = _attributes(root["attributes"])
    assert attributes["tinker_recovery.run.name"] == "sft"
    assert attributes["tinker_recovery.outcome"] == "recovered"
    linked = {
        _attributes(link["attributes"])["tinker_recovery.link"]: link for link in root["links"]
    }
    (replaced,) = (
        span
        for span in spans
        if span["name"] == "run.segment"
        and _attributes(span["attributes"])["tinker_recovery.attempt.number"] == "1"
    )
    assert linked["replaced_segment"]["spanId"] == replaced["spanId"]
    assert linked["replaced_segment"]["traceId"] == replaced["traceId"]
