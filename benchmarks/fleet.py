"""Ten thousand watched runs: what watching costs, how soon a fault is seen, and 500 at once.

The server is in a process of its own, so CPU seconds are those of the watcher alone. Ours is
compared, in turns, with the least that anybody could write: the pages of the list, by plain httpx
and json. And with programs that ask for each run separately: one GET after the other, as the
Elixir layer does, and all at once. Those two read the reply as the SDK would; they ask for a sample
of the runs, and the figures are scaled to all.

- requests per cycle: the server's count for one poll of all runs;
- CPU over plain httpx paging: ours divided by that;
- cpu ratio: CPU seconds of the cheaper of the last two, divided by ours;
- bytes per run: what tracemalloc counts for 10,000 watches and their state;
- detection lag: from a run's corruption to its detection by a Supervisor at its own pace. The
  others detect it within their interval and the time of their cycle;
- 500 poisoned at once (100 with --quick): all are recovered, never more at once than the policy
  allows.

    python benchmarks/fleet.py [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import certifi
import httpx
import tinker
from _report import Bar, arguments, bars, table
from tinker import types

from tinker_recovery import RecoveryEvent, RecoveryPolicy, Supervisor
from tinker_recovery.clock import SYSTEM_CLOCK
from tinker_recovery.detection.poller import Poller, by_run_id
from tinker_recovery.service.status import PAGE
from tinker_recovery.telemetry import EventSink, names
from tinker_recovery.testing import LocalTinkerProcess

RUNS = 10_000
POISONED, QUICK_POISONED = 500, 100
BOUND = 8
MOST_REQUESTS = 110
CHEAPER = 20.0
MOST_BYTES = 4096
MOST_CPU = 1.1
LATEST = 1.2
"""In intervals: one, and what the look itself takes on a busy machine."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one poll of all runs costs."""

    requests: float
    cpu_s: float
    wall_s: float


async def measured(
    server: LocalTinkerProcess, look: Callable[[], Awaitable[object]], share: float = 1.0
) -> Cost:
    """The cost of a poll of a share of the runs, scaled to all of them."""
    before = (await server.stats()).total
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    await look()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    asked = (await server.stats()).total - before - 1  # without this request itself
    return Cost(asked / share, cpu / share, wall / share)


def median(costs: Sequence[Cost]) -> Cost:
    """Of each figure."""
    return Cost(
        statistics.median(cost.requests for cost in costs),
        statistics.median(cost.cpu_s for cost in costs),
        statistics.median(cost.wall_s for cost in costs),
    )


async def watching(
    server: LocalTinkerProcess, run_ids: list[str], *, rounds: int, sample: int
) -> tuple[dict[str, Cost], float]:
    """What a poll costs, three ways, and the bytes of a watch."""
    quiet = RecoveryPolicy(enabled=True, poll_interval_s=36_000.0)
    headers = {"X-API-Key": server.api_key}
    costs: dict[str, list[Cost]] = {
        "ours": [],
        "pages, plain httpx": [],
        "one after the other": [],
        "gathered": [],
    }
    async with (
        Supervisor(quiet) as supervisor,
        httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=60.0) as http,
    ):
        inside = supervisor._inside  # noqa: SLF001 - what the Supervisor's own Monitor works with
        reader = inside.collaborators.reader
        poller = Poller(reader, interval_s=0.0, events=EventSink(), clock=SYSTEM_CLOCK)

        async def ask(run_id: str) -> bool:
            reply = await http.get(f"/api/v1/training_runs/{run_id}")
            return types.TrainingRun.model_validate_json(reply.content).corrupted

        async def one_by_one(some: Sequence[str]) -> None:
            for run_id in some:
                await ask(run_id)

        async def gathered(some: Sequence[str]) -> None:
            await asyncio.gather(*(ask(run_id) for run_id in some))

        gc.collect()
        tracemalloc.start()
        began = tracemalloc.get_traced_memory()[0]
        watches = [supervisor.watch(run_id, on_recovery=print) for run_id in run_ids]
        await poller.poll(by_run_id(list(inside.watches.polled())))
        gc.collect()
        used = (tracemalloc.get_traced_memory()[0] - began) / len(watches)
        tracemalloc.stop()

        async def ours() -> None:
            await poller.poll(by_run_id(list(inside.watches.polled())))

        async def paged() -> None:
            corrupted: dict[str, bool] = {}
            offset, total = 0, 1
            while offset < total:
                reply = await http.get(
                    "/api/v1/training_runs", params={"limit": PAGE, "offset": offset}
                )
                page = json.loads(reply.content)
                corrupted |= {
                    run["training_run_id"]: run["corrupted"] for run in page["training_runs"]
                }
                offset, total = offset + PAGE, page["cursor"]["total_count"]

        await one_by_one(run_ids[:20])  # pays for the connection
        for _ in range(rounds):
            some = random.sample(run_ids, sample)
            share = sample / len(run_ids)
            costs["ours"].append(await measured(server, ours))
            costs["pages, plain httpx"].append(await measured(server, paged))
            costs["one after the other"].append(
                await measured(server, lambda: one_by_one(some), share)  # noqa: B023 - called at once
            )
            costs["gathered"].append(
                await measured(server, lambda: gathered(some), share)  # noqa: B023 - called at once
            )
    return {way: median(each) for way, each in costs.items()}, used


@dataclass
class Recoveries:
    """Recoveries in progress, counted where clients are made and handed over."""

    detected_at: dict[str, float] = field(default_factory=dict)
    recovered: set[str] = field(default_factory=set)
    flying: int = 0
    most: int = 0
    made: int = 0
    told: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def service(self) -> tinker.ServiceClient:
        """A new client; the first only provides the service's address."""
        with self._lock:
            self.made += 1
            if self.made > 1:
                self.flying += 1
                self.most = max(self.most, self.flying)
        return tinker.ServiceClient()

    def handed_over(self, old: str, client: object, checkpoint: object) -> None:
        """A watched run is back."""
        del client, checkpoint
        with self._lock:
            self.flying -= 1
        self.recovered.add(old)

    def heard(self, event: RecoveryEvent) -> None:
        """Record an event of the Supervisor."""
        if event.name == names.EVENT_DETECTED:
            self.detected_at[event.run] = time.monotonic()
        if event.name in (names.EVENT_MASS_FAILURE, names.EVENT_MASS_OVER):
            self.told.append(event.message)


@dataclass(frozen=True, slots=True)
class Incident:
    """How the runs that were corrupted came back."""

    single_lags_s: list[float]
    mass_lags_s: list[float]
    wall_s: float
    unrecovered: int
    over_bound: float
    told: list[str]


async def corrupted(
    server: LocalTinkerProcess, run_ids: list[str], saved: list[str], *, singles: int, poll_s: float
) -> Incident:
    """Corrupt a few of the saved runs, one at a time, then all the others at once."""
    seen = Recoveries()
    # A session on standby would be counted as a recovery.
    policy = RecoveryPolicy(
        poll_interval_s=poll_s, max_concurrent_recoveries=BOUND, backoff_s=1.0, standby="none"
    )
    lags: list[float] = []
    async with Supervisor(policy, service=seen.service, on_event=seen.heard) as supervisor:
        watches = {each: supervisor.watch(each, on_recovery=seen.handed_over) for each in run_ids}
        single, many = saved[:singles], saved[singles:]
        async with anyio.create_task_group() as group:
            for run_id in single:
                group.start_soon(_one, server, run_id, seen, poll_s * random.random(), lags)
        say("single faults are measured")
        struck = time.monotonic()
        await server.corrupt(many)
        with anyio.move_on_after(240):
            while not all(watches[each].recoveries for each in many):  # noqa: ASYNC110 - five hundred callbacks are what sets it
                await anyio.sleep(0.02)
        wall_s = time.monotonic() - struck
        unrecovered = sum(not watches[each].recoveries for each in (*single, *many))
        mass = [seen.detected_at[each] - struck for each in many if each in seen.detected_at]
    return Incident(lags, mass, wall_s, unrecovered, seen.most / BOUND, seen.told)


async def _one(
    server: LocalTinkerProcess, run_id: str, seen: Recoveries, after_s: float, lags: list[float]
) -> None:
    await anyio.sleep(after_s)
    struck = time.monotonic()
    await server.corrupt([run_id])
    while run_id not in seen.recovered:  # noqa: ASYNC110 - as above
        await anyio.sleep(0.005)
    lags.append(seen.detected_at[run_id] - struck)


def trust_little(file: Path) -> None:
    """Make the SDK read one certificate for each client, not all: the server speaks plain HTTP."""
    end = "-----END CERTIFICATE-----\n"
    file.write_text(certifi.contents().partition(end)[0] + end)
    os.environ["SSL_CERT_FILE"] = str(file)


def say(what: str) -> None:
    """Print progress on stderr."""
    print(what, file=sys.stderr, flush=True)


async def main(*, quick: bool) -> list[Bar]:
    """Measure, print the tables, return the bars."""
    poll_s = 5.0 if quick else 10.0
    singles = 3 if quick else 10
    poisoned = QUICK_POISONED if quick else POISONED
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        async with LocalTinkerProcess(Path(folder)) as server:
            os.environ.update(TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key)
            trust_little(Path(folder, "one.pem"))
            saved: list[str] = []
            while len(saved) < poisoned + singles:
                saved += await server.add_runs(min(50, poisoned + singles - len(saved)), saved=True)
            run_ids = [*saved, *await server.add_runs(RUNS - len(saved))]
            random.shuffle(run_ids)
            say(f"{RUNS} runs are listed")
            costs, used = await watching(
                server, run_ids, rounds=3 if quick else 5, sample=50 if quick else RUNS // 4
            )
            say("the cost of a look is measured")
            incident = await corrupted(server, run_ids, saved, singles=singles, poll_s=poll_s)
    ours = costs["ours"]
    print(f"one poll of {RUNS} runs, median\n")
    table(
        ["", "requests", "CPU s", "seconds"],
        [
            [way, f"{cost.requests:.0f}", f"{cost.cpu_s:.3f}", f"{cost.wall_s:.2f}"]
            for way, cost in costs.items()
        ],
    )
    print(f"\nmemory: {used:.0f} bytes for each watched run")
    print(f"\nfrom a run's corruption to its detection, poll_interval_s={poll_s:g}\n")
    rows = [
        [name, f"{statistics.median(lags):.2f}", f"{max(lags):.2f}"]
        for name, lags in (
            (f"ours, {singles} runs by themselves", incident.single_lags_s),
            (f"ours, {poisoned} at once", incident.mass_lags_s or [float("inf")]),
        )
    ]
    for way in ("one after the other", "gathered"):
        cycle = costs[way].wall_s
        rows.append(
            [f"{way} (by its cycle)", f"{(poll_s + cycle) / 2:.2f}", f"{poll_s + cycle:.2f}"]
        )
    table(["", "median s", "worst s"], rows)
    print(f"\n{poisoned} at once: back after {incident.wall_s:.1f} s, {incident.unrecovered} left")
    for line in incident.told:
        print(f"  {line}")
    cheapest = min(costs["one after the other"].cpu_s, costs["gathered"].cpu_s)
    return [
        Bar("requests per cycle", ours.requests, MOST_REQUESTS),
        Bar(
            "CPU over plain httpx paging", ours.cpu_s / costs["pages, plain httpx"].cpu_s, MOST_CPU
        ),
        Bar("cpu ratio", cheapest / ours.cpu_s, CHEAPER, "higher"),
        Bar("bytes per run", used, MOST_BYTES),
        Bar("detection lag over interval", max(incident.single_lags_s) / poll_s, LATEST),
        Bar("recoveries in flight over bound", incident.over_bound, 1.0),
        Bar("unrecovered runs", float(incident.unrecovered), 0.0),
    ]


if __name__ == "__main__":
    given = arguments(__doc__)
    os.environ["TINKER_TELEMETRY"] = "0"
    logging.getLogger("tinker_recovery").setLevel(logging.CRITICAL)
    bars("fleet", asyncio.run(main(quick=given.quick)), as_json=given.json)
