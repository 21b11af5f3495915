"""The output of every benchmark: a table, and bars as JSON on the last line."""

from __future__ import annotations

import argparse
import atexit
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Bar:
    """A measured value and its limit."""

    name: str
    value: float
    limit: float
    better: Literal["lower", "higher"] = "lower"

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit


def arguments(
    description: str | None, sizes: Mapping[str, tuple[int, int]] | None = None
) -> argparse.Namespace:
    """``--quick`` and ``--json``, and an option for each size.

    Args:
        description: What the benchmark measures.
        sizes: How much of what: the default, and the one with ``--quick``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 50 s")
    parser.add_argument("--json", action="store_true", help="print the bars on the last line")
    for name, (full, quick) in (sizes or {}).items():
        what = f"how many {name} ({full}; with --quick {quick})"
        parser.add_argument(f"--{name}", type=int, metavar="N", help=what)
    keep_no_state()
    given = parser.parse_args()
    for name, (full, quick) in (sizes or {}).items():
        if getattr(given, name) is None:
            setattr(given, name, quick if given.quick else full)
    return given


def rounds(most: int, *, within_s: float | None, least: int = 2) -> Iterator[int]:
    """Count rounds, up to ``most``, and begin none after ``within_s`` seconds.

    So ``--quick`` ends in time on a slow machine as well, with fewer rounds, but never fewer than
    ``least``.
    """
    began = time.monotonic()
    for done in range(most):
        if within_s is not None and done >= least and time.monotonic() - began > within_s:
            return
        yield done


def keep_no_state() -> None:
    """Write every journal to a folder that is deleted at the end, and no log at all."""
    folder = tempfile.TemporaryDirectory(prefix="benchmark-state-")
    atexit.register(folder.cleanup)
    os.environ["TINKER_RECOVERY_STATE_DIR"] = folder.name
    # A table is to be read, so what the runs say of themselves is not printed in between.
    logging.getLogger("tinker_recovery").addHandler(logging.NullHandler())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, the first to the left."""
    widths = [
        max(len(str(row[column])) for row in [header, *rows]) for column in range(len(header))
    ]
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            str(cell).ljust(width) if column == 0 else str(cell).rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells))


def bars(benchmark: str, measured: Sequence[Bar], *, as_json: bool) -> None:
    """Print the bars, and with ``--json`` again on the last line for machines."""
    print()
    for bar in measured:
        sign = "<=" if bar.better == "lower" else ">="
        verdict = "holds" if bar.holds else "MISSED"
        print(f"bar {bar.name!r}: {bar.value:.4g} {sign} {bar.limit:g}  {verdict}")
    if as_json:
        rows = [{**asdict(bar), "holds": bar.holds} for bar in measured]
        print(json.dumps({"benchmark": benchmark, "bars": rows}))
