"""What a supervisor costs: ours, task groups that restart manually, and other libraries.

All run in one process on the same workers, and rounds are interleaved in random order. The bars
compare medians with those of the best other library, or where none is installed (the extra "bench")
take the median over rounds of (ours / anyio task group). "Manual" is the least code that restarts:
a new task for each incarnation, no limit, no backoff, no report. The loop in one task is shown as
the lower bound; it lacks what a new task provides. Logging is off for all.

Crash to running is from the last line of an incarnation to the first line of the next.

    python benchmarks/supervision.py [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import statistics
import tracemalloc
import warnings
from collections import defaultdict
from collections.abc import Awaitable, Callable

import anyio
from _contestants import BARE, CHEAP, CLOCK, CONTESTANTS, OURS, Contestant, Worker, Yard
from _report import Bar, arguments, bars, table

CRASHES = 200
SIBLINGS = 500
STARTED = 200
STORM = 1000
HELD = 500
MANUAL_LIMIT = 2.0
"""A task group that restarts manually has no limit, no backoff, no report and no order."""
PATIENCE_S = 3.0
"""A contestant that takes longer than this for one measurement is shown with a dash."""

Times = dict[str, float]


async def crash_to_running(contestant: Contestant, siblings: int) -> Times:
    """Seconds from crash to running, and restarts a second, beside this many idle siblings."""
    yard = Yard()
    worker = Worker(yard, "crashing")
    idle = [Worker(yard, f"idle-{number}") for number in range(siblings)]
    down: list[float] = []
    async with contestant([worker, *idle], yard):
        began = CLOCK()
        for _ in range(CRASHES):
            up = yard.expect(1)
            worker.crash()
            await up
            down.append(worker.down_s)
        elapsed = CLOCK() - began
    key = f"beside {siblings}" if siblings else "crash"
    return {key: statistics.median(down), f"{key}, a second": CRASHES / elapsed}


async def start_and_stop(contestant: Contestant) -> Times:
    """Seconds for each child to start, and to stop."""
    yard = Yard()
    workers = [Worker(yard, f"worker-{number}") for number in range(STARTED)]
    began = CLOCK()
    async with contestant(workers, yard):
        up = CLOCK()
        yard.expect(0)
        leaving = CLOCK()
    stopped = CLOCK()
    return {"start": (up - began) / STARTED, "stop": (stopped - leaving) / STARTED}


async def storm(contestant: Contestant) -> Times:
    """Seconds until all are up again after all crash at once."""
    yard = Yard()
    workers = [Worker(yard, f"worker-{number}") for number in range(STORM)]
    async with contestant(workers, yard):
        up = yard.expect(STORM)
        began = CLOCK()
        for worker in workers:
            worker.crash()
        await up
        elapsed = CLOCK() - began
    return {"storm": elapsed}


async def memory(contestant: Contestant) -> Times:
    """Bytes for each child that is up, its task and its own code included."""
    yard = Yard()
    async with contestant([Worker(yard, "warm")], yard):
        pass
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        workers = [Worker(yard, f"worker-{number}") for number in range(HELD)]
        async with contestant(workers, yard):
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {"bytes": (after - before) / HELD}


Measurement = Callable[[Contestant], Awaitable[Times]]

MEASUREMENTS: dict[str, Measurement] = {
    "crash": lambda contestant: crash_to_running(contestant, 0),
    "siblings": lambda contestant: crash_to_running(contestant, SIBLINGS),
    "start": start_and_stop,
    "storm": storm,
}


def once(measure: Measurement, contestant: Contestant) -> Times:
    """One measurement, in an event loop of its own."""

    async def patiently() -> Times:
        with anyio.fail_after(PATIENCE_S):
            return await measure(contestant)

    gc.collect()
    gc.disable()  # a collection in the middle of one contestant's turn is not its own
    try:
        return asyncio.run(patiently())
    finally:
        gc.enable()


MANY = {"storm", "bytes"}
"""Measurements of so many children that there is no need to try who was too slow with fewer."""


class Results:
    """Every time of every contestant, and why some have none."""

    def __init__(self) -> None:
        self.times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.missing: dict[str, dict[str, str]] = defaultdict(dict)

    def take(self, name: str, measurement: str, measure: Measurement) -> None:
        """Measure once, unless this has failed before, or something smaller has."""
        if measurement in self.missing[name]:
            return
        if measurement in MANY and (slow := self.missing[name].get("siblings")):
            self.missing[name][measurement] = slow
            return
        try:
            times = once(measure, CONTESTANTS[name])
        except ImportError as error:
            self.missing[name][measurement] = f"is not installed ({error})"
        except TimeoutError:
            self.missing[name][measurement] = f"took longer than {PATIENCE_S:g} s"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or name in (OURS, BARE):
                raise
            self.missing[name][measurement] = f"failed: {error!r}"
        else:
            for what, value in times.items():
                self.times[name][what].append(value)

    def median(self, name: str, what: str) -> float | None:
        """The median of one thing, if it was measured."""
        values = self.times[name][what]
        return statistics.median(values) if values else None

    def ratio(self, what: str, over: str = BARE) -> float:
        """The median over rounds of ours to another's."""
        pairs = zip(self.times[OURS][what], self.times[over][what], strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def over_best(self, what: str) -> Bar:
        """Ours over the best supervisor of another library, and its bar.

        Where none is installed, over a task group of anyio that restarts manually.
        """
        libraries = {
            name: median
            for name in list(CONTESTANTS)[CHEAP:]
            if (median := self.median(name, what)) is not None
        }
        if not libraries:
            return Bar(f"{what} over an anyio task group, manual", self.ratio(what), MANUAL_LIMIT)
        best = min(libraries, key=lambda name: libraries[name])
        ours = self.median(OURS, what) or 0.0
        return Bar(f"{what} over the best other library, {best}", ours / libraries[best], 1.0)


def measured(*, rounds: int, rounds_of_libraries: int) -> Results:
    """Everything, interleaved."""
    results = Results()
    names = list(CONTESTANTS)
    for number in range(rounds):
        turn = names if number < rounds_of_libraries else names[:CHEAP]
        for measurement, measure in MEASUREMENTS.items():
            for name in random.sample(turn, len(turn)):
                results.take(name, measurement, measure)
    for name in names:
        results.take(name, "bytes", memory)
    return results


def show(results: Results) -> None:
    """Print the table, and the reason for each dash."""
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("crash to running", "crash", lambda value: f"{value * 1e6:.1f} us"),
        (f"beside {SIBLINGS}", f"beside {SIBLINGS}", lambda value: f"{value * 1e6:.1f} us"),
        ("restarts/s", "crash, a second", lambda value: f"{value:,.0f}"),
        ("start a child", "start", lambda value: f"{value * 1e6:.1f} us"),
        ("stop a child", "stop", lambda value: f"{value * 1e6:.1f} us"),
        (f"storm of {STORM}", "storm", lambda value: f"{value * 1e3:.1f} ms"),
        ("bytes a child", "bytes", lambda value: f"{value:,.0f}"),
    ]
    rows = []
    for name in CONTESTANTS:
        medians = [(results.median(name, what), form) for _, what, form in columns]
        rows.append([name, *("-" if value is None else form(value) for value, form in medians)])
    table(["supervisor", *(title for title, _, _ in columns)], rows)
    for name, missing in results.missing.items():
        for reason in dict.fromkeys(missing.values()):
            where = ", ".join(what for what, why in missing.items() if why == reason)
            print(f"- {name} ({where}): {reason}")


def main(*, quick: bool) -> list[Bar]:
    """Measure, print the table, return the bars."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # libraries left in the middle of a measurement complain
    results = measured(rounds=6 if quick else 31, rounds_of_libraries=1 if quick else 5)
    show(results)
    beside = statistics.median(
        many / none
        for many, none in zip(
            results.times[OURS][f"beside {SIBLINGS}"], results.times[OURS]["crash"], strict=True
        )
    )
    held = results.median(OURS, "bytes")
    return [
        results.over_best("crash"),
        results.over_best("start"),
        results.over_best("stop"),
        results.over_best("storm"),
        Bar(f"{SIBLINGS} siblings over none", beside, 1.05),
        Bar("bytes per child", 0.0 if held is None else held, 3_500),
    ]


if __name__ == "__main__":
    given = arguments(__doc__)
    bars("supervision", main(quick=given.quick), as_json=given.json)
