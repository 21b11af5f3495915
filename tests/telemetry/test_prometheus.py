"""The dashboard and the alerts, in a real Prometheus, on the metrics of a real run."""

from __future__ import annotations

import functools
import json
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import pytest_asyncio
from inspection import set_meter_provider
from loops import MODEL, policy, train
from opentelemetry.sdk.metrics import MeterProvider

import tinker_recovery
from tinker_recovery import Attempt, CheckpointPolicy, Supervisor
from tinker_recovery.telemetry import metrics
from tinker_recovery.testing import LocalTinker

FOLDER = Path(tinker_recovery.__file__).parents[1] / "docs" / "observability"
DASHBOARD = json.loads((FOLDER / "grafana" / "tinker-recovery.json").read_text())
QUERIES = {
    f"{panel['title']}, {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="no `prometheus` and `promtool` on PATH: apt-get install prometheus",
)


@pytest_asyncio.fixture
async def prometheus(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """It has read the alerts, and the metrics of a run with a recovery and of one that failed."""
    exporter = pytest.importorskip("opentelemetry.exporter.prometheus")
    client = pytest.importorskip("prometheus_client")
    provider = MeterProvider([exporter.PrometheusMetricReader()], shutdown_on_exit=False)
    set_meter_provider(monkeypatch, provider)
    server, serving = client.start_http_server(0, addr="127.0.0.1")
    try:
        await _runs(local)
        config = tmp_path / "prometheus.yml"
        config.write_text(_config(server.server_address[1]))
        port = _free_port()
        with subprocess.Popen(  # noqa: S603, ASYNC220 - of Debian's package
            [
                *(str(shutil.which("prometheus")), f"--config.file={config}"),
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=subprocess.DEVNULL,
        ) as running:
            try:
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as asked:
                    await _until_there(asked)
                    yield asked
            finally:
                running.kill()
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
        provider.shutdown()


async def _runs(local: LocalTinker) -> None:
    async def fails(attempt: Attempt) -> None:
        await train(attempt, steps=1)
        raise ZeroDivisionError

    local.poison(at_step=7)
    given = policy(checkpoints=CheckpointPolicy(save_at_start=False, save_every=5, keep_last=1))
    async with Supervisor(given) as supervisor:
        await supervisor.run(functools.partial(train, steps=12), base_model=MODEL, name="sft-42")
        with pytest.raises(ZeroDivisionError):
            await supervisor.run(fails, base_model=MODEL, name="bad")


def _config(port: int) -> str:
    return json.dumps(
        {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "200ms"},
            "rule_files": [str(FOLDER / "alerts.yml")],
            "scrape_configs": [
                {
                    "job_name": "training",
                    "scrape_timeout": "500ms",
                    "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
                }
            ],
        }
    )


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def _ask(asked: httpx.AsyncClient, query: str) -> list[dict[str, Any]]:
    answer = (await asked.get("/api/v1/query", params={"query": query})).json()
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


async def _until_there(asked: httpx.AsyncClient) -> None:
    """Two scrapes, without which there is no rate."""
    with anyio.fail_after(40.0):
        while True:
            try:
                if (await asked.get("/-/ready")).is_success:
                    seen = await _ask(asked, "count_over_time(tinker_recovery_run_active[1m])")
                    if seen and float(seen[0]["value"][1]) > 2:
                        return
            except httpx.TransportError:
                pass
            await anyio.sleep(0.1)


def _filled(query: str) -> str:
    """A query as Grafana sends it."""
    return query.replace("$run", ".*").replace("$__rate_interval", "1m")


async def _empty_panels(asked: httpx.AsyncClient) -> list[str]:
    return [name for name, query in QUERIES.items() if not await _ask(asked, _filled(query))]


async def _firing(asked: httpx.AsyncClient) -> list[dict[str, Any]]:
    alerts = (await asked.get("/api/v1/alerts")).json()["data"]["alerts"]
    return [alert for alert in alerts if alert["state"] == "firing"]


async def _health(asked: httpx.AsyncClient) -> list[str]:
    """That of each alert's rule: it can be evaluated, cannot, or has not been yet."""
    groups = (await asked.get("/api/v1/rules")).json()["data"]["groups"]
    return [str(rule["health"]) for group in groups for rule in group["rules"]]


@needs_prometheus
async def test_every_panel_shows_something_and_the_alert_of_a_run_that_failed_fires(
    prometheus: httpx.AsyncClient,
) -> None:
    # A scrape that comes too late on a busy machine leaves a gap, and the next one ends it.
    with anyio.move_on_after(20.0):
        while await _empty_panels(prometheus):  # noqa: ASYNC110 - another process
            await anyio.sleep(0.2)
    assert await _empty_panels(prometheus) == []
    (share,) = await _ask(
        prometheus, 'tinker_recovery_run_goodput_ratio{tinker_recovery_run_name="sft-42"}'
    )
    assert 0.0 < float(share["value"][1]) < 1.0
    (failed,) = await _ask(prometheus, _filled(QUERIES["Runs that failed, A"]))
    assert failed["value"][1] == "1"
    with anyio.move_on_after(20.0):
        while not await _firing(prometheus) or "unknown" in await _health(prometheus):  # noqa: ASYNC110 - as above
            await anyio.sleep(0.2)
    (alert,) = await _firing(prometheus)
    assert await _health(prometheus) == ["ok"] * 6
    assert alert["labels"]["alertname"] == "TinkerRunFailed"
    assert alert["annotations"]["summary"] == "A run has ended by an error (ZeroDivisionError)."


@needs_prometheus
@pytest.mark.parametrize("what", ["rules alerts.yml", "config prometheus.yml"])
def test_promtool_finds_nothing_wrong(what: str) -> None:
    kind, _, file = what.partition(" ")
    done = subprocess.run(  # noqa: S603 - of Debian's package
        [str(shutil.which("promtool")), "check", kind, str(FOLDER / file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "6 rules found" in done.stdout


def test_the_compose_file_mounts_what_there_is_and_serves_this_machine_alone() -> None:
    text = (FOLDER / "compose.yml").read_text()
    mounted = re.findall(r"- \./(\S+?):", text)
    assert len(mounted) == 5
    assert [name for name in mounted if not (FOLDER / name).is_file()] == []
    ports = re.findall(r"\d[\d.]*:\d+(?=\")", text)
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in re.findall(r'"([\d.]+:[\d:]+)"', text))


def test_dashboard_and_alerts_ask_for_metrics_that_there_are() -> None:
    ours = {
        value.replace(".", "_")
        for name, value in vars(metrics).items()
        if name.isupper() and isinstance(value, str) and value.startswith("tinker_recovery.")
    }
    text = "\n".join([*QUERIES.values(), (FOLDER / "alerts.yml").read_text()])
    asked = set(re.findall(r"\btinker_recovery_\w+(?=[{\[) <]|$)", text))
    asked = {name for name in asked if not re.match(r"tinker_recovery_(run_name|outcome)$", name)}
    suffix = r"(_seconds)?(_total|_sum|_count|_bucket)?$"
    unknown = {name for name in asked if re.sub(suffix, "", name) not in ours}
    unknown -= {"tinker_recovery_fault_kind", "tinker_recovery_token_kind"}
    assert unknown == set()
