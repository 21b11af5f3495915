"""What grows in a process that lives for weeks: with recoveries, with steps, and with runs.

Three lives, against a server in a process of its own:

- one named run that recovers a thousand times, each time after a step that was saved;
- one run of a hundred thousand steps, which saves every hundredth;
- three hundred runs side by side, each of a few steps.

For each: resident bytes, open descriptors, threads (without those of pools, which are reused) and
the bytes of the journal, for one more recovery, step or run, counted behind the first few, which
load what the process needs anyhow. Of recoveries and steps, descriptors and threads are to stay as
they are; a run has its own as long as it lasts, so there it is what is left once all have ended.

A step's time is that of the supervised loop over that of the bare SDK, in alternating blocks, by
the CPU seconds of this process, so that neither the server nor other programs count. The ratio is
that at the end over that at the start.

Bytes are held to a limit from three hundred recoveries on; of fewer, the allocator's slack is seen.

    python benchmarks/growth.py [--quick] [--json] [--recoveries N] [--steps N] ...
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import tinker
from _plain_loop import ADAM, batch
from _report import Bar, arguments, bars, table
from fleet import trust_little

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy, SupervisedClient, Supervisor
from tinker_recovery.service.http import MOST_IDLE
from tinker_recovery.testing import FaultRule, LocalTinkerProcess

SIZES = {
    "recoveries": (1_000, 8),
    "steps": (100_000, 100),
    "runs": (300, 3),
    "pairs": (10, 5),
}
"""Of each life, and with --quick."""
IDLE_S = 70.0
"""Longer than the server keeps idle connections."""
SAVE_EVERY, NEVER = 100, 10**9
BLOCK = 5
"""Steps of a block; a pair of blocks is one of each client, at the start and the end of a life."""
SETTLE_S = 1.0
"""For what is closed behind the last recovery or run, and the descriptors of idle connections."""

ENOUGH = 300
"""Recoveries whose bytes say what one keeps: of fewer, it is the allocator's slack that is seen."""
MOST_KB = 60.0
SLOWER = 1.05
FLAT = 8.0
"""Descriptors or threads more at the end of a life: connections come and go."""

POOLS = ("AnyIO worker", "asyncio_", "ThreadPool")
"""How the names of threads begin that are reused, as many as were ever busy at once."""


@dataclass(frozen=True, slots=True)
class Size:
    """What this process has."""

    bytes: int
    descriptors: int
    threads: int
    journal: int

    def __sub__(self, other: Size) -> Size:
        return Size(
            self.bytes - other.bytes,
            self.descriptors - other.descriptors,
            self.threads - other.threads,
            self.journal - other.journal,
        )


@dataclass(frozen=True, slots=True)
class Life:
    """What one life has cost.

    Attributes:
        what: A recovery, a step or a run.
        count: How many.
        grown: What was added by all of them, or is left of them.
        slower: A step's time at the end over that at the start; None where it is not measured.
    """

    what: str
    count: int
    grown: Size
    slower: float | None = None


class Place:
    """The journal of a life, and what the process has with it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.journal = folder / f"{name}.db"

    async def size(self) -> Size:
        """Once everything is settled that can be."""
        await anyio.sleep(SETTLE_S)
        return self._size()

    def _size(self) -> Size:
        for _ in range(3):
            gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what is free, of glibc
        pages = Path("/proc/self/statm").read_text().split()[1]
        return Size(
            int(pages) * os.sysconf("SC_PAGESIZE"),
            len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - of the kernel's, and nothing waits
            sum(not each.name.startswith(POOLS) for each in threading.enumerate()),
            self._journal_bytes(),
        )

    def _journal_bytes(self) -> int:
        if not self.journal.exists():
            return 0
        with contextlib.closing(sqlite3.connect(self.journal)) as database:
            ((pages,),) = database.execute("PRAGMA page_count")
            ((page,),) = database.execute("PRAGMA page_size")
        return int(pages) * int(page)


Client = tinker.TrainingClient | SupervisedClient


async def one_step(client: Client, step: int) -> None:
    """Submit a step, and wait for it."""
    forward = client.forward_backward(batch(step), "cross_entropy")
    update = client.optim_step(ADAM)
    await forward
    await update


class Pace:
    """A supervised client's time for a step over a bare one's, at two moments."""

    def __init__(self, bare: tinker.TrainingClient, pairs: int) -> None:
        self._bare, self._pairs = bare, pairs
        self._at_start = 0.0

    async def _ratio(self, client: SupervisedClient) -> float:
        both: tuple[Client, Client] = client, self._bare
        ratios = []
        for pair in range(self._pairs):
            seconds = {}
            for each in both if pair % 2 else reversed(both):
                began = time.process_time()
                for step in range(BLOCK):
                    await one_step(each, step)
                seconds[each] = time.process_time() - began
            ratios.append(seconds[client] / seconds[self._bare])
        return statistics.median(ratios)

    async def start(self, client: SupervisedClient) -> None:
        """Measure at the start."""
        self._at_start = await self._ratio(client)

    async def end(self, client: SupervisedClient) -> float:
        """Measure at the end, over the start."""
        return await self._ratio(client) / self._at_start


def policy(save_every: int) -> RecoveryPolicy:
    """The default settings, but for how often it saves."""
    return RecoveryPolicy(checkpoints=CheckpointPolicy(save_every=save_every))


async def recoveries(server: LocalTinkerProcess, pace: Pace, place: Place, count: int) -> Life:
    """One run that recovers again and again."""
    first = max(5, count // 20)
    sizes, slower = list[Size](), list[float]()

    async def live(attempt: Attempt) -> None:
        done = attempt.number - 1
        if done == first:
            await pace.start(attempt.client)
            sizes.append(await place.size())
        if done == first + count:
            sizes.append(await place.size())
            slower.append(await pace.end(attempt.client))
            return
        await one_step(attempt.client, attempt.start_step)
        await attempt.client.save_state(f"recovery-{done}")
        await server.inject(FaultRule("fail", request="forward_backward"))
        await one_step(attempt.client, attempt.start_step)

    async with Supervisor(policy(NEVER), journal=place.journal) as supervisor:
        await supervisor.run(live, name="long", base_model="b", rank=8, seed=1)
    return Life("recovery", count, sizes[1] - sizes[0], slower[0])


async def steps(pace: Pace, place: Place, count: int) -> Life:
    """One run that trains and trains."""
    first = max(SAVE_EVERY, count // 20)
    sizes, slower = list[Size](), list[float]()

    async def live(attempt: Attempt) -> None:
        client = attempt.client
        for step in range(first):
            await one_step(client, step)
        await pace.start(client)
        sizes.append(await place.size())
        for step in range(count):
            await one_step(client, step)
            attempt.report(loss=1.0 / (step + 1))
        sizes.append(await place.size())
        slower.append(await pace.end(client))

    async with Supervisor(policy(SAVE_EVERY), journal=place.journal) as supervisor:
        await supervisor.run(live, base_model="b", rank=8, seed=1)
    return Life("step", count, sizes[1] - sizes[0], slower[0])


async def runs(place: Place, count: int) -> tuple[Life, Life]:
    """Many runs at once: what each has while it lasts, and what is left of it."""
    up, over = anyio.Event(), anyio.Event()
    ready = 0

    async def live(attempt: Attempt) -> None:
        nonlocal ready
        for step in range(attempt.start_step, 4):
            await one_step(attempt.client, step)
        ready += 1
        if ready == count:
            up.set()
        await over.wait()

    async with Supervisor(policy(2), journal=place.journal) as supervisor:
        await supervisor.run(brief, base_model="b", rank=8, seed=1)
        before = await place.size()
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(_run, supervisor, live)
            await up.wait()
            during = await place.size()
            over.set()
        if count > MOST_IDLE:
            # The service closes idle connections, and the next request drops them.
            await anyio.sleep(IDLE_S)
            await supervisor.run(brief, base_model="b", rank=8, seed=1)
        after = await place.size()
    return Life("run, under way", count, during - before), Life("run, over", count, after - before)


async def _run(supervisor: Supervisor, live: Callable[[Attempt], object]) -> None:
    await supervisor.run(live, base_model="b", rank=8, seed=1)


async def brief(attempt: Attempt) -> None:
    """A run of one step."""
    await one_step(attempt.client, 0)


def say(what: str) -> None:
    """Print progress on stderr."""
    print(what, file=sys.stderr, flush=True)


async def main(sizes: dict[str, int]) -> list[Bar]:
    """Measure, print the table, return the bars."""
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        async with LocalTinkerProcess(folder / "server") as server:
            os.environ.update(TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key)
            trust_little(folder / "one.pem")
            service = tinker.ServiceClient()
            bare = await anyio.to_thread.run_sync(
                lambda: service.create_lora_training_client("b", rank=8, seed=1).result()
            )
            pairs = sizes["pairs"]
            trained = await steps(Pace(bare, pairs), Place(folder, "steps"), sizes["steps"])
            say(f"{trained.count} steps are trained")
            recovered = await recoveries(
                server, Pace(bare, pairs), Place(folder, "recoveries"), sizes["recoveries"]
            )
            say(f"{recovered.count} recoveries are done")
            during, after = await runs(Place(folder, "runs"), sizes["runs"])
            await service.close("success")
    print("for one more recovery, step or run; descriptors and threads for all of them\n")
    table(
        ["", "of", "bytes", "descriptors", "threads", "journal bytes", "slower by"],
        [
            [
                life.what,
                str(life.count),
                f"{life.grown.bytes / life.count:.0f}",
                f"{life.grown.descriptors:+d}",
                f"{life.grown.threads:+d}",
                f"{life.grown.journal / life.count:.0f}",
                "" if life.slower is None else f"{life.slower:.3f}",
            ]
            for life in (recovered, trained, during, after)
        ],
    )
    kept = Bar("KB a recovery", recovered.grown.bytes / recovered.count / 1e3, MOST_KB)
    return [
        *([kept] if recovered.count >= ENOUGH else []),
        *(
            Bar(f"step time, end over start ({life.what})", life.slower or 0.0, SLOWER)
            for life in (recovered, trained)
        ),
        *(
            bar
            for life in (recovered, trained, after)
            for bar in (
                Bar(f"descriptors more ({life.what})", life.grown.descriptors, FLAT),
                Bar(f"threads more ({life.what})", life.grown.threads, FLAT),
            )
        ),
    ]


if __name__ == "__main__":
    given = arguments(__doc__, SIZES)
    os.environ["TINKER_TELEMETRY"] = "0"
    logging.getLogger("tinker_recovery").setLevel(logging.CRITICAL)
    chosen = {name: getattr(given, name) for name in SIZES}
    bars("growth", asyncio.run(main(chosen)), as_json=given.json)
