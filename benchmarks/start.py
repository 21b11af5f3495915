"""The start: what importing the package and asking the command for its version or help costs.

Processor time of whole processes, user and system, of interpreters that are started in turn; of the
import behind the SDK's, that of the import alone. Of a
program with click no less can be asked than `import click`; of one that trains, no less than
`import tinker`, and the last row is what it really waits for. Compiled files are in a folder of the
benchmark, written before anything is measured.

    python benchmarks/start.py [--quick] [--json]
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile

from _report import Bar, arguments, bars, rounds, table

ROUNDS, QUICK_ROUNDS, QUICK_S = 21, 5, 25.0

NOTHING, CLICK, SDK = "pass", "import click", "import tinker"
VERSION, HELP = "tinker-recovery --version", "tinker-recovery --help"
FACE = "import tinker_recovery"
COMMAND = "import sys; from tinker_recovery.cli import main; sys.exit(main())"
"""What the installed script does."""
AFTER_SDK = (
    "import tinker, time; began = time.process_time(); import tinker_recovery; "
    "print(time.process_time() - began)"
)
USED = "from tinker_recovery import RecoveryPolicy, Supervisor"

ASKED = {
    NOTHING: ("-c", NOTHING),
    CLICK: ("-c", CLICK),
    VERSION: ("-c", COMMAND, "--version"),
    HELP: ("-c", COMMAND, "--help"),
    FACE: ("-c", FACE),
    SDK: ("-c", SDK),
    USED: ("-c", USED),
}


def cpu_s(command: tuple[str, ...], compiled: str) -> float:
    """Seconds of processor time of one interpreter, from its start to its end."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(  # noqa: S603 - our own commands
        [sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def after_sdk_ms(compiled: str) -> float:
    """Milliseconds of processor time of importing the package where the SDK is imported."""
    printed = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", AFTER_SDK],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPYCACHEPREFIX": compiled},
    )
    return float(printed.stdout) * 1e3


def main() -> None:
    """Measure, and print."""
    given = arguments(__doc__)
    took: dict[str, list[float]] = {what: [] for what in ASKED}
    added_ms: list[float] = []
    with tempfile.TemporaryDirectory() as compiled:
        for command in ASKED.values():
            cpu_s(command, compiled)
        most, within_s = (QUICK_ROUNDS, QUICK_S) if given.quick else (ROUNDS, None)
        for _ in rounds(most, within_s=within_s):
            for what, command in ASKED.items():
                took[what].append(cpu_s(command, compiled))
            added_ms.append(after_sdk_ms(compiled))

    def of(what: str, plain: str) -> float:
        return statistics.median(
            one / other for one, other in zip(took[what], took[plain], strict=True)
        )

    table(
        ("a process that does", "CPU ms", "least", "times pass"),
        [
            (
                what,
                f"{statistics.median(each) * 1e3:.0f}",
                f"{min(each) * 1e3:.0f}",
                f"{of(what, NOTHING):.1f}",
            )
            for what, each in took.items()
        ],
    )
    bars(
        "start",
        [
            Bar("--version CPU s", statistics.median(took[VERSION]), 0.15),
            Bar("--version CPU of import click", of(VERSION, CLICK), 1.5),
            Bar("--help CPU of import click", of(HELP, CLICK), 1.7),
            Bar(
                "import tinker_recovery after import tinker, CPU ms",
                statistics.median(added_ms),
                60,
            ),
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
