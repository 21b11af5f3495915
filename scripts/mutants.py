#!/usr/bin/env python3
"""How many small changes to the package its tests notice, room by room.

Each change (a comparison flipped or moved by its boundary, a number by one, a condition inverted,
`and` for `or`, a statement, an operand or an item of a sort key dropped, `+` for `-`, None
returned) is tried on a copy of the tree, with some of the tests that reach its line: quick ones
that reach the fewest lines of all, then those that reach little outside its file, then those that
together reach the most of it in the least time, and no more after the first that fails.
Nothing in the tree itself is touched.

First each test file is run once under coverage, to see which test reaches which line. That is kept
in --cache, and measured again only where the package or the file has changed. It counts towards the
budget; `--budget-min 0` does nothing else. On a machine under load tests seem slow, and fewer
fit: measure again, with another --cache, when it is quiet.

A change that is not noticed is a survivor: a test is missing, or the code is not needed, or the
change changes nothing. What changes nothing is named in scripts/mutants_equivalent.toml with the
reason, and is not counted. What is "noticed" may as well be a test that fails by itself, on a
machine under load for one: `--control` counts those.

  scripts/mutants.py --file tinker_recovery/checkpoints/ledger.py
  scripts/mutants.py --room recovery --room run --budget-min 30 --workers 2
  scripts/mutants.py --changed-since main --json out.json

Exit status: 0 if each room that was tried is at --least or above it, else 1.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from _mutations import Mutation, mutations_of
from coverage import Coverage
from hypothesis import Phase, settings
from tinker.lib.internal_client_holder import _internal_client_holder_thread_singleton as sdk

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "tinker_recovery"
ROOMS = "checkpoints", "recovery", "run", "retention", "detection"
TESTS = (
    *("tests/checkpoints", "tests/fleet", "tests/lifecycle", "tests/verification"),
    *("tests/journal", "tests/service", "tests/telemetry", "tests/test_*.py"),
    *("tests/cli/test_recover.py", "tests/cli/test_checkpoints_command.py"),
)
SLOW_S = 8.0
"""A test that takes longer is used only where no other reaches the line."""
UNIT_S = 0.1
"""A test that takes no longer costs little more than its fork, so more of these are tried."""
OVERHEAD_S = 0.05
"""What running a test costs besides."""
MOST_S = 40.0
"""Tests of one change take no more than this together, when nothing fails."""
MEMORY = 6 * 2**30

Reach = Mapping[str, tuple[float, Mapping[str, Sequence[int]]]]
"""By test: its seconds, and the lines it reaches by file."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change to one file.

    Attributes:
        file: Path from the root of the tree.
        mutation: The change.
        tests: The tests to try it with, in this order.
        limit_s: Seconds after which it counts as noticed: it hangs.
    """

    file: str
    mutation: Mutation
    tests: tuple[str, ...]
    limit_s: float

    @property
    def room(self) -> str:
        """The folder below the package, or the module."""
        return Path(self.file).relative_to(PACKAGE).parts[0].removesuffix(".py")

    def __str__(self) -> str:
        made = self.mutation
        return f"{self.file}:{made.lines[0]} {made.scope}: {made.change}"


# Workers: each a copy of the tree, and a pytest session that runs tests in forks of itself


def copy_tree(folder: Path) -> None:
    """Copy what is tracked, and what is new and not ignored, as it is now."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own words
    for name in filter(None, out.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def work(folder: Path, files: Sequence[str], jobs: Connection) -> None:
    """Answer what comes through the connection, until it closes."""
    copy_tree(folder)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)
    profile = {"deadline": None, "derandomize": True, "database": None}
    phases = [Phase.explicit, Phase.generate]  # and no shrinking of what failed
    settings.register_profile("mutants", phases=phases, **profile)  # type: ignore[arg-type]  # by name
    own = ["-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:benchmark", "--capture=sys"]
    with (folder / "collected.log").open("w") as log:
        os.dup2(log.fileno(), 1)
    own += ["--hypothesis-profile=mutants", f"--basetemp={folder / 'tmp'}", "-q", "--no-header"]
    early = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is imported by now
    pytest.main([*own, *early, *files], plugins=[_Server(jobs)])


class _Server:
    """A pytest plugin: what it has collected is run in forks, as often as asked."""

    def __init__(self, jobs: Connection) -> None:
        self._jobs = jobs
        self._stamps = itertools.count(1_000_000_000)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:  # each run of tests would seem to fail
            raise RuntimeError(f"{session.testsfailed} test files could not be collected")
        self._items = {item.nodeid: item for item in session.items}
        gc.unfreeze()
        self._functions: dict[str, list[FunctionType]] = defaultdict(list)
        for found in gc.get_objects():
            if isinstance(found, FunctionType):
                self._functions[found.__code__.co_filename].append(found)
        gc.freeze()
        with contextlib.suppress(EOFError):
            while True:
                job = self._jobs.recv()
                self._jobs.send(self._try(job) if isinstance(job, Mutant) else self._measure(job))
        return True

    def _run(self, items: Sequence[pytest.Item], *, first: bool = True) -> int:
        """Run tests, in a fork; 1 if one fails, and then no more of them."""
        _start_sdk_again()
        session = items[0].session
        for item, following in itertools.zip_longest(items, items[1:]):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if first and session.testsfailed:
                return 1
        return 0

    def _measure(self, file: str) -> dict[str, Any]:
        """What each test of a file reaches, and its seconds; without those that fail."""
        items = [item for item in self._items.values() if item.nodeid.split("::")[0] == file]

        def under_coverage() -> int:
            coverage = Coverage(data_file=None, config_file=False, source_dirs=[PACKAGE])
            # Warnings are errors here, and some files reach nothing of the package.
            coverage.set_option("run:disable_warnings", ["no-data-collected"])
            contexts = _Contexts(coverage)
            items[0].config.pluginmanager.register(contexts)
            coverage.start()
            self._run(items, first=False)
            coverage.stop()
            Path("reach.json").write_text(json.dumps(contexts.reach()))
            return 0

        if items and (status := _forked(under_coverage, 600.0)) != 0:
            raise RuntimeError(f"{file} could not be measured: {status}")
        return dict(json.loads(Path("reach.json").read_text())) if items else {}

    def _try(self, mutant: Mutant) -> tuple[str, float]:
        """Try a change: what came of it, and its seconds."""
        began = time.monotonic()
        tests = [self._items[test] for test in mutant.tests if test in self._items]
        if not tests:
            return "unreached", 0.0
        source = Path(mutant.file).read_text()
        changed = mutant.mutation.apply(source)
        self._write(mutant.file, changed)
        try:
            status = _forked(
                lambda: (
                    self._run(tests) if changed == source else self._with(mutant, changed, tests)
                ),
                mutant.limit_s,
            )
        finally:
            self._write(mutant.file, source)
        verdicts: Mapping[int | None, str] = {0: "survived", None: "hung"}
        return verdicts.get(status, "noticed"), time.monotonic() - began

    def _write(self, file: str, text: str) -> None:
        """For processes that tests start; its time keeps old compiled modules from being used."""
        Path(file).write_text(text)
        stamp = next(self._stamps)
        os.utime(file, (stamp, stamp))

    def _with(self, mutant: Mutant, changed: str, tests: Sequence[pytest.Item]) -> int:
        file = str(Path(mutant.file).resolve())
        fresh = _codes(compile(changed, file, "exec", dont_inherit=True))
        replaced = False
        if mutant.mutation.in_function:
            for function in self._functions[file]:
                code = function.__code__
                new = fresh.get((code.co_qualname, code.co_firstlineno))
                if new is not None and new != code and new.co_freevars == code.co_freevars:
                    function.__code__ = new
                    replaced = True
        if replaced:
            return self._run(tests)
        # What runs at import needs a process that has not imported it yet.
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", *mutant.tests]
        return min(subprocess.call(command), 1)  # noqa: S603 - our own words


def _codes(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """Every function's code in a module's, by name and first line."""
    found = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found[constant.co_qualname, constant.co_firstlineno] = constant
            found |= _codes(constant)
    return found


def _start_sdk_again() -> None:
    """The SDK's loop runs in a thread, which a fork does not have."""
    sdk._started = False  # noqa: SLF001 - the SDK has no public way
    sys.modules["conftest"].SDK_LOOP = sdk.get_loop()  # type: ignore[attr-defined]  # of the tests


class _Contexts:
    """A pytest plugin: notes what each test that passes reaches."""

    def __init__(self, coverage: Coverage) -> None:
        self._coverage = coverage
        self._seconds: Counter[str] = Counter()
        self._failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._coverage.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration  # type: ignore[assignment]  # seconds
        if not report.passed:
            self._failed.add(report.nodeid)

    def reach(self) -> Reach:
        data = self._coverage.get_data()
        lines: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for source in data.measured_files():
            name = str(Path(source).relative_to(Path.cwd()))
            for line, tests in data.contexts_by_lineno(source).items():
                for test in tests:
                    lines[test][name].append(line)
        passed = self._seconds.keys() - self._failed
        return {test: (round(self._seconds[test], 3), lines[test]) for test in sorted(passed)}


def _forked(work: Callable[[], int], limit_s: float) -> int | None:
    """The result of work in a process of its own; None if it takes too long."""
    child = os.fork()
    if not child:
        status = 3
        try:
            os.setsid()
            signal.alarm(int(limit_s) + 1)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            status = work()
        finally:
            os._exit(status)
    try:
        _, raw = os.waitpid(child, 0)
    finally:  # with all processes that its tests have started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    return None if os.WIFSIGNALED(raw) else os.WEXITSTATUS(raw)


class Workers:
    """Processes that take jobs: a mutant, or a test file to measure.

    Args:
        folder: Where their copies of the tree go.
        files: The test files that they collect.
        count: How many there are.
    """

    def __init__(self, folder: Path, files: Sequence[str], count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._idle: list[Connection] = []
        for index in range(count):
            ours, theirs = context.Pipe()
            copied = folder / str(index)
            context.Process(target=work, args=(copied, files, theirs), daemon=True).start()
            theirs.close()
            self._idle.append(ours)

    def each(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Every job with its answer, as they come; a job is taken when a worker is free for it."""
        waiting, busy = iter(jobs), dict[Connection, Any]()
        while True:
            while self._idle and (job := next(waiting, None)) is not None:
                worker = self._idle.pop()
                worker.send(job)
                busy[worker] = job
            if not busy:
                return
            ready = wait(list(busy))
            for worker in [each for each in busy if each in ready]:
                answer = worker.recv()
                self._idle.append(worker)
                yield busy.pop(worker), answer


def reach_of(workers: Workers, files: Iterable[str], cache: Path) -> Reach:
    """What each test reaches, from the cache where neither the package nor the tests changed."""

    def digest(parts: Iterable[Path]) -> str:
        return hashlib.sha256(b"\0".join(part.read_bytes() for part in parts)).hexdigest()[:16]

    code = sorted([*ROOT.glob(f"{PACKAGE}/**/*.py"), *ROOT.glob("tests/*.py")])
    package = digest(path for path in code if not path.name.startswith("test_"))
    cache.mkdir(parents=True, exist_ok=True)
    kept = {
        file: cache / f"{file.replace('/', '.')}-{package}-{digest([ROOT / file])}.json"
        for file in files
    }
    missing = [file for file, known in kept.items() if not known.exists()]
    for number, (file, measured) in enumerate(workers.each(missing), 1):
        kept[file].write_text(json.dumps(measured))
        progress(f"measured {number} of {len(missing)} test files: {file}")
    return {test: reached for known in kept.values() for test, reached in _read(known).items()}


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


# What to try


@dataclass(slots=True)
class _Index:
    reach: Reach
    by_line: dict[tuple[str, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    by_file: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _chosen: dict[tuple[str, frozenset[str]], tuple[str, ...]] = field(default_factory=dict)
    _lines: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for test, (_, files) in self.reach.items():
            for file, lines in files.items():
                self.by_file[file][test] = len(lines)
                for line in lines:
                    self.by_line[file, line].append(test)

    def _whole(self, test: str) -> int:
        if test not in self._lines:
            self._lines[test] = sum(len(lines) for lines in self.reach[test][1].values())
        return self._lines[test]

    def tests(self, file: str, text: str, made: Mutation, most: int) -> tuple[str, ...]:
        """The tests for a change to a file with this text.

        See :func:`smallest`, :func:`nearest` and :func:`spread_over`.
        """
        first, last = made.lines
        found = {test for line in range(first, last + 1) for test in self.by_line[file, line]}
        found = found or set(self.by_line[file, made.at])
        if not made.in_function:
            # Its own line is reached by whichever test was the first to import the module.
            used = {test for line in uses(text, made.at) for test in self.by_line[file, line]}
            found = used or {test for test, _ in self.by_file[file].most_common(most)} or found
        quick = frozenset(test for test in found if self.reach[test][0] <= SLOW_S)
        key = file, quick or frozenset(found)
        if key not in self._chosen:
            seconds = {test: self.reach[test][0] for test in key[1]}
            reached = {test: self.reach[test][1].get(file, ()) for test in key[1]}
            whole = {test: self._whole(test) for test in key[1]}
            small = smallest(whole, seconds, most)
            others = {test: reached[test] for test in reached if test not in small}
            near = nearest(others, whole, seconds, most // 2)
            others = {test: reached[test] for test in others if test not in near}
            self._chosen[key] = *small, *near, *spread_over(others, seconds, most - len(near))
        return self._chosen[key]


def nearest(
    reached: Mapping[str, Sequence[int]],
    whole: Mapping[str, int],
    seconds: Mapping[str, float],
    most: int,
) -> list[str]:
    """Those that reach little else: what is about a file is most likely to notice a change to it.

    One case of each test comes before the second of any.

    Args:
        reached: The lines of the file that each test reaches.
        whole: How many lines of the package each reaches.
        seconds: How long each takes.
        most: How many to choose.
    """
    by_share = sorted(
        reached, key=lambda test: (-len(reached[test]) / max(1, whole[test]), seconds[test], test)
    )
    return in_turns(by_share)[:most]


def smallest(whole: Mapping[str, int], seconds: Mapping[str, float], most: int) -> list[str]:
    """Those that reach the fewest lines of all: of what is decided in a line, most say it alone.

    They take next to no time, so they come in addition. One case of each comes first, as above.

    Args:
        whole: How many lines of the package each test reaches.
        seconds: How long each takes.
        most: How many to choose.
    """
    units = [test for test in whole if seconds[test] <= UNIT_S]
    return in_turns(sorted(units, key=lambda test: (whole[test], test)))[:most]


def in_turns(tests: Iterable[str]) -> list[str]:
    """In this order, but one case of each test before the second of any."""
    cases = Counter[str]()
    turns = {}
    for test in tests:
        name = test.partition("[")[0]
        turns[test] = cases[name]
        cases[name] += 1
    return sorted(turns, key=lambda test: turns[test])


def spread_over(
    reached: Mapping[str, Iterable[int]], seconds: Mapping[str, float], most: int
) -> list[str]:
    """Those that together reach the most of a file in the least time, then such again.

    A line that many tests reach is reached in as many ways as the lines around it: the quickest
    tests alone would all be of the usual one.

    Args:
        reached: The lines of the file that each test reaches.
        seconds: How long each takes.
        most: How many to choose.
    """
    lines = {test: sum(1 << line for line in set(reached[test])) for test in reached}
    left = sorted(reached, key=lambda test: (seconds[test], test))
    chosen: list[str] = []
    seen = 0
    while left and len(chosen) < most:
        gains = [(lines[each] & ~seen).bit_count() / (seconds[each] + OVERHEAD_S) for each in left]
        if not (best := max(gains)) and seen:
            seen = 0
            continue
        chosen.append(left.pop(gains.index(best)))
        seen |= lines[chosen[-1]]
    return chosen


def uses(text: str, line: int) -> list[int]:
    """The lines that read what a statement that runs at import has given a value.

    Of a module or a class, those with its names; of a function, whose defaults are such, its body.

    Args:
        text: The module's.
        line: The first line of the statement; of any other, there are none.
    """
    nodes = list(ast.walk(ast.parse(text)))
    names: set[str] = set()
    found: set[int] = set()
    for node in nodes:
        for statement in getattr(node, "body", ()) if _is_scope(node) else ():
            if statement.lineno != line:
                continue
            if isinstance(statement, ast.Assign | ast.AnnAssign):
                names |= {
                    target.id
                    for target in ast.walk(statement)
                    if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
                }
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                found |= set(range(statement.body[0].lineno, (statement.end_lineno or line) + 1))
    for node in nodes:
        name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
        if name in names and isinstance(getattr(node, "ctx", None), ast.Load):
            found.add(node.lineno)  # type: ignore[attr-defined]  # of a name or an attribute
    return sorted(found)


def _is_scope(node: ast.AST) -> bool:
    return isinstance(node, ast.Module | ast.ClassDef)


def within(tests: Sequence[str], seconds: Callable[[str], float], most_s: float) -> list[str]:
    """As many of the tests as fit into these seconds, and one at least."""
    total = itertools.accumulate(seconds(test) for test in tests)
    return [test for test, used in zip(tests, total, strict=True) if used <= most_s] or list(
        tests[:1]
    )


def evenly(mutants: Iterable[Mutant], seed: int) -> list[Mutant]:
    """In a random order that takes one of each room in turn."""
    rooms: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        rooms[mutant.room].append(mutant)
    for room in rooms.values():
        random.Random(seed).shuffle(room)
    turns = itertools.zip_longest(*(rooms[room] for room in sorted(rooms)))
    return [mutant for turn in turns for mutant in turn if mutant is not None]


def changed_lines(revision: str) -> dict[str, set[int]]:
    """The lines of each file that are not as in a revision."""
    diff = ["git", "diff", "-U0", revision, "--", PACKAGE]
    out = subprocess.run(diff, cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own words
    lines: dict[str, set[int]] = defaultdict(set)
    file = ""
    for line in out.splitlines():
        if line.startswith("+++ "):
            file = line.removeprefix("+++ b/")
        elif hunk := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line):
            first = int(hunk[1])
            lines[file] |= set(range(first, first + int(hunk[2] or 1)))
    return lines


def set_aside(file: Path) -> dict[tuple[str, str, str], str]:
    """What changes nothing, with the reason: by file, scope and change."""
    entries = tomllib.loads(file.read_text()).get("equivalent", [])
    return {(entry["file"], entry["scope"], entry["change"]): entry["reason"] for entry in entries}


# What came of it


@dataclass(slots=True)
class Results:
    """What came of each change that was tried."""

    known: Counter[str]
    aside: Counter[str]
    tried: list[tuple[Mutant, str, float]] = field(default_factory=list)

    def scores(self) -> dict[str, tuple[int, int]]:
        """By room: how many were noticed, of how many tried."""
        tried = Counter(mutant.room for mutant, _, _ in self.tried)
        noticed = Counter(
            mutant.room for mutant, verdict, _ in self.tried if verdict in {"noticed", "hung"}
        )
        return {room: (noticed[room], tried[room]) for room in sorted(tried)}

    def table(self) -> str:
        """The scores, for people."""
        rows = [f"{'room':<16}{'noticed':>9}{'tried':>7}{'of':>7}{'aside':>7}{'score':>8}"]
        for room, (noticed, tried) in self.scores().items():
            counts = f"{noticed:>9}{tried:>7}{self.known[room]:>7}{self.aside[room]:>7}"
            rows.append(f"{room:<16}{counts}{100 * noticed / tried:>7.1f}%")
        return "\n".join(rows)

    def survivors(self) -> list[str]:
        """What was not noticed, in the order of files and lines."""
        left = [(m, v) for m, v, _ in self.tried if v in {"survived", "unreached"}]
        left.sort(key=lambda pair: (pair[0].file, pair[0].mutation.lines))
        return [
            f"{mutant}{'  (no test reaches it)' if verdict == 'unreached' else ''}"
            for mutant, verdict in left
        ]

    def as_json(self) -> dict[str, Any]:
        """All of it, for machines."""
        return {
            "rooms": {
                room: {"noticed": noticed, "tried": tried, "of": self.known[room]}
                for room, (noticed, tried) in self.scores().items()
            },
            "mutants": [
                {
                    "file": mutant.file,
                    "line": mutant.mutation.lines[0],
                    "scope": mutant.mutation.scope,
                    "change": mutant.mutation.change,
                    "verdict": verdict,
                    "tests": len(mutant.tests),
                    "seconds": round(seconds, 2),
                }
                for mutant, verdict, seconds in self.tried
            ],
        }


_said_at = 0.0


def progress(text: str) -> None:
    """Over the last line of a terminal, and once a minute where it is none."""
    global _said_at  # noqa: PLW0603 - of the one standard error there is
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", file=sys.stderr, flush=True, end="")
    elif text and time.monotonic() > _said_at + 60:
        _said_at = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--room", action="append", metavar="ROOM", help=f"default: {', '.join(ROOMS)}")
    add("--file", action="append", metavar="PATH", help="only this file; may be given again")
    add("--changed-since", metavar="REV", help="only lines that are not as in this revision")
    add("--tests", action="append", metavar="GLOB", help=f"default: {' '.join(TESTS)}")
    add("--budget-min", type=float, default=30.0, help="minutes in all (default: 30); if that is "
        "too little for all, a random part is tried, as many of each room")  # fmt: skip
    add("--seed", type=int, default=0, help="of that part (default: 0)")
    add(
        "--most-tests",
        type=int,
        default=40,
        metavar="N",
        help="for one change, and as many quick ones (default: 40)",
    )
    add("--workers", type=int, default=os.cpu_count() or 1, help="default: one a core")
    add("--control", action="store_true", help="change nothing, to count what fails by itself")
    add("--least", type=float, default=0.0, metavar="PERCENT", help="the score to reach")
    add("--list", action="store_true", help="print what would be tried, with how many tests")
    add("--json", type=Path, metavar="PATH", help="write all results there")
    add("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mutants-reach", metavar="DIR")
    return parser.parse_args()


def _candidates(chosen: argparse.Namespace, index: _Index) -> tuple[list[Mutant], Results]:
    rooms = chosen.room or ([] if chosen.file else ROOMS)
    paths = [ROOT / PACKAGE / room for room in rooms]
    files = [file for path in paths for file in path.glob("**/*.py")]
    files += [path.with_suffix(".py") for path in paths if not path.is_dir()]
    files += [Path(file).resolve() for file in chosen.file or []]
    lines = changed_lines(chosen.changed_since) if chosen.changed_since else None
    aside = set_aside(ROOT / "scripts" / "mutants_equivalent.toml")
    used: set[tuple[str, str, str]] = set()
    mutants, results = [], Results(Counter(), Counter())
    for path in sorted(set(files)):
        file = str(path.relative_to(ROOT))
        text = path.read_text()
        for made in mutations_of(text):
            if lines is not None and not lines[file] & set(range(made.lines[0], made.lines[1] + 1)):
                continue
            tests = index.tests(file, text, made, chosen.most_tests)
            tests = tuple(within(tests, lambda test: index.reach[test][0], MOST_S))
            limit_s = 30.0 + 4 * sum(index.reach[test][0] for test in tests)
            tried = (
                replace(made, text=text.encode()[made.start : made.end].decode())
                if chosen.control
                else made
            )
            mutant = Mutant(file, tried, tests, limit_s)
            results.known[mutant.room] += 1
            key = file, made.scope, made.change
            if key in aside:
                used.add(key)
                results.aside[mutant.room] += 1
            else:
                mutants.append(mutant)
    seen = {str(path.relative_to(ROOT)) for path in files}
    for file, scope, change in sorted(set(aside) - used):
        if file in seen and lines is None:
            print(f"set aside, but not there any more: {file} {scope}: {change}", file=sys.stderr)
    return evenly(mutants, chosen.seed), results


def main() -> int:
    """Measure, try, and print."""
    chosen = arguments()
    until_s = time.monotonic() + 60 * chosen.budget_min
    patterns = chosen.tests or TESTS
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    tests = {file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))}
    files = sorted(str(file.relative_to(ROOT)) for file in tests if file.name.startswith("test_"))
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        workers = Workers(Path(folder), files, chosen.workers)
        mutants, results = _candidates(chosen, _Index(reach_of(workers, files, chosen.cache)))
        if chosen.list:
            print(*(f"{mutant}  ({len(mutant.tests)} tests)" for mutant in mutants), sep="\n")
            return 0
        in_time = itertools.takewhile(lambda _: time.monotonic() < until_s, mutants)
        with contextlib.suppress(KeyboardInterrupt):  # what is known by then is printed
            for mutant, (verdict, seconds) in workers.each(in_time):
                results.tried.append((mutant, verdict, seconds))
                counts = Counter(verdict for _, verdict, _ in results.tried)
                said = ", ".join(f"{number} {word}" for word, number in sorted(counts.items()))
                left_min = max(0.0, until_s - time.monotonic()) / 60
                progress(f"{len(results.tried)} of {len(mutants)}: {said}; {left_min:.0f} min left")
    progress("")
    print(*results.survivors(), "", results.table(), sep="\n")
    if chosen.json:
        chosen.json.write_text(json.dumps(results.as_json(), indent=1))
    return int(any(100 * n / tried < chosen.least for n, tried in results.scores().values()))


if __name__ == "__main__":
    sys.exit(main())
