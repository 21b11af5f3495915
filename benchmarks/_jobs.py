"""Jobs over three workers, of which one is killed by kill -9 and one stopped by SIGTERM.

The workers share a database and nothing else: each has a machine id and a journal of its own, so
that one is gone is seen by its claim at the service alone. A tenth of the runs are poisoned on the
way. Every job has to end once, with the bits of an undisturbed run, and never be trained by two:
the server writes down each training request as it is executed, so no process's own word counts.

Times are those of real life divided by two (by twenty with --quick): the service ends a session
that is silent for 60 s (6), heartbeats are sent six times in that time, and jobs begin as much
sooner after each other than by default. A step takes 8 s (0.1): where 200 runs step faster, their
requests keep a machine of two cores busy, and what is measured is the machine. Each worker has
places for all jobs; of a few, which one worker could take alone, for two thirds. Processor time is
that of calm runs, as jobs in one process over the same in one Supervisor beside it, at the same
time: the median of the rounds. What the imports take is not in it.

    python benchmarks/jobs.py [--jobs 200] [--steps 40] [--runs 60] [--rounds 3] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import operator
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import _postgres
import anyio
import anyio.to_thread
from _fencing import Trained, watched
from _jobs_loop import MODEL, POLICY, RANK, SEED, START, train
from _report import Bar, arguments, bars, table

from tinker_recovery import Supervisor
from tinker_recovery.jobs import Jobs
from tinker_recovery.testing import LocalTinker, RunState

HERE = Path(__file__).parent
WORKERS = ("alpha", "beta", "gamma")
PACE_S, QUICK_PACE_S = 8.0, 0.1
LIMIT_S, QUICK_LIMIT_S = 60.0, 6.0
REAL_LIMIT_S, STARTS_PER_S = 120.0, 5.0
MANY = 30
"""Of so many jobs, begun one after the other, no worker takes all."""
AT_MOST_S = 900.0


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs of one database."""

    database: str
    jobs: int
    lost: int
    by_two: int
    differ: int
    left: int
    resumed_s: float
    took_s: float


@contextlib.contextmanager
def worker(name: str, *given: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker's process."""
    command = [sys.executable, str(HERE / "_jobs_worker.py"), name, *given]
    with subprocess.Popen(command) as running:  # noqa: S603 - our own program
        try:
            yield running
        finally:
            running.kill()


async def undisturbed(local: LocalTinker, steps: int) -> RunState:
    """What a run ends with if nothing goes wrong."""
    async with Supervisor(POLICY, journal=None) as supervisor:
        loop = functools.partial(train, steps=steps)
        await supervisor.run(loop, base_model=MODEL, rank=RANK, seed=SEED)
        (run,) = supervisor.runs
        return local.run_state(run.segments[-1].run_id)


async def disturbed(given: argparse.Namespace, name: str, database: str) -> Outcome:
    """Have the jobs done by three workers, and disturb them."""
    limit_s = QUICK_LIMIT_S if given.quick else LIMIT_S
    pace_s = QUICK_PACE_S if given.quick else PACE_S
    async with LocalTinker(heartbeat_limit_s=limit_s) as local:
        os.environ |= {"TINKER_BASE_URL": local.base_url, "TINKER_API_KEY": local.api_key}
        expected = await undisturbed(local, given.steps)
        for number in range(max(1, given.jobs // 10)):
            local.poison(at_step=2 + number % (given.steps - 2))
        trained = watched(local)
        began = time.monotonic()
        starts_per_s = STARTS_PER_S * REAL_LIMIT_S / limit_s
        most = given.jobs if given.jobs >= MANY else -(-given.jobs * 2 // 3)
        work = database, str(most), str(starts_per_s), str(limit_s)
        async with Jobs(database, work=False) as jobs:
            handles = [
                await jobs.submit(
                    train,
                    name=f"job-{number:03}",
                    args={"steps": given.steps, "pace_s": pace_s},
                    **START,
                )
                for number in range(given.jobs)
            ]
            with contextlib.ExitStack() as stack:
                workers = {each: stack.enter_context(worker(each, *work)) for each in WORKERS}
                await until_trained(trained, given.jobs * given.steps // 4)
                killed, left = await busiest(jobs)
                workers.pop(killed).send_signal(signal.SIGKILL)
                died = time.monotonic()
                await until_trained(trained, given.jobs * given.steps // 2)
                next(iter(workers.values())).send_signal(signal.SIGTERM)
                results = {}
                with anyio.move_on_after(AT_MOST_S):
                    for handle in handles:
                        with contextlib.suppress(Exception):
                            results[handle.name] = await handle.result()
        runs = {key: result.run_ids for key, result in results.items()}
        resumed = [_resumed(trained, runs.get(key, ()), died) for key in left]
        last = {key: run_ids[-1] for key, run_ids in runs.items()}
        return Outcome(
            name,
            given.jobs,
            lost=given.jobs - len(results),
            by_two=sum(bool(_of(trained, run_ids).overlap()) for run_ids in runs.values()),
            differ=sum(local.run_state(run) != expected for run in last.values()),
            left=len(left),
            resumed_s=max(resumed, default=0.0) - died if left else 0.0,
            took_s=time.monotonic() - began,
        )


async def busiest(jobs: Jobs) -> tuple[str, list[str]]:
    """The worker that runs the most jobs just now, and their names."""
    with anyio.fail_after(AT_MOST_S):
        while True:
            running: dict[str, list[str]] = {worker: [] for worker in WORKERS}
            for each in await jobs.list("running"):
                running.get(each.worker.partition("/")[0], []).append(each.name)
            name = max(running, key=lambda worker: len(running[worker]))
            if running[name]:
                return name, running[name]
            await anyio.sleep(0.05)


def _of(trained: Trained, run_ids: tuple[str, ...]) -> Trained:
    return Trained([each for each in trained.requests if each[1] in run_ids])


def _resumed(trained: Trained, run_ids: tuple[str, ...], died: float) -> float:
    """When a job that was left was first trained in a Tinker run that began after that."""
    mine = _of(trained, run_ids)
    earlier = {run for at, run, _ in mine.requests if at <= died}
    return next((at for at, run, _ in mine.requests if run not in earlier), float("inf"))


async def until_trained(trained: Trained, steps: int) -> None:
    """Wait until as many steps are done."""
    with anyio.fail_after(AT_MOST_S):
        while sum(request == "optim_step" for *_, request in trained.requests) < steps:  # noqa: ASYNC110 - the server's thread counts
            await anyio.sleep(0.05)


async def processor(given: argparse.Namespace, databases: dict[str, str]) -> dict[str, float]:
    """Processor time of jobs over that of the same runs in one Supervisor, by database."""
    async with LocalTinker() as local:
        os.environ |= {"TINKER_BASE_URL": local.base_url, "TINKER_API_KEY": local.api_key}

        def measure(*how: str) -> float:
            done = subprocess.run(  # noqa: S603 - our own program
                [sys.executable, str(HERE / "_jobs_cpu.py"), *how],
                check=True,
                capture_output=True,
                text=True,
            )
            return float(done.stdout.splitlines()[-1])

        size = str(given.runs), str(given.steps)
        ways = {"": ("supervisor",), **{name: ("jobs", each) for name, each in databases.items()}}
        took: dict[str, list[float]] = {name: [] for name in ways}

        async def take(name: str) -> None:
            how, *database = ways[name]
            used = await anyio.to_thread.run_sync(measure, how, *size, *database)
            took[name].append(used)

        # At the same time: the same work takes twice the time in some minutes on many machines.
        for _ in range(given.rounds):
            async with anyio.create_task_group() as group:
                for name in ways:
                    group.start_soon(take, name)
        plain = took.pop("")
        return {
            name: statistics.median(map(operator.truediv, each, plain))
            for name, each in took.items()
        }


@contextlib.contextmanager
def databases() -> Iterator[dict[str, str]]:
    """Both kinds, or the one that there can be."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        found = {"SQLite": f"{folder}/jobs.sqlite3"}
        if why := _postgres.why_not():
            print(f"without PostgreSQL: {why}", file=sys.stderr)
        else:
            found["PostgreSQL"] = stack.enter_context(_postgres.served("of-the-benchmark"))
        yield found


def main() -> None:
    """Play, and print the results."""
    sizes = {"jobs": (200, 9), "steps": (40, 20), "runs": (60, 16), "rounds": (3, 1)}
    given = arguments(__doc__, sizes)
    with databases() as found:
        ratios = anyio.run(processor, given, found)
        outcomes = [anyio.run(disturbed, given, *each) for each in found.items()]
    limit_s = QUICK_LIMIT_S if given.quick else LIMIT_S
    table(
        ("database", "jobs", "left by the killed", "last resumed after", "CPU a job", "all took"),
        [
            (
                each.database,
                str(each.jobs),
                str(each.left),
                f"{each.resumed_s:.1f} s",
                f"{ratios[each.database]:.2f} x",
                f"{each.took_s:.0f} s",
            )
            for each in outcomes
        ],
    )
    bars(
        "jobs",
        [
            Bar("jobs left by the killed worker", min(each.left for each in outcomes), 1, "higher"),
            Bar("lost jobs", sum(each.lost for each in outcomes), 0),
            Bar("trained by two", sum(each.by_two for each in outcomes), 0),
            Bar("weights differ", sum(each.differ for each in outcomes), 0),
            Bar("CPU a job over the same runs in one Supervisor", max(ratios.values()), 1.3),
            Bar(
                "seconds from a worker's death to its last job resumed, over the heartbeat limit",
                max(each.resumed_s for each in outcomes) / limit_s,
                1.5,
            ),
        ],
        as_json=given.json,
    )
