"""A recipe's log folder: made to say where an attempt begins, and nothing of what was abandoned.

The cookbook resumes from the last record of ``checkpoints.jsonl`` that has a ``state_path``, with
the batch and epoch that stand there, and appends to ``metrics.jsonl``.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinker_recovery.errors import UsageError

CHECKPOINTS = "checkpoints.jsonl"
METRICS = "metrics.jsonl"
MARK = "tinker-recovery.json"
"""Says that the folder is a supervised run's, and which."""


TOKENS = "tokens/cumulative/"

UNSEEN = "tinker_recovery/unseen"
"""Stands in the metrics of a step that is in the weights, and whose results nobody has seen."""


def run_name(folder: Path, given: str | None) -> str:
    """The name of the run of this log folder, which is noted there the first time.

    Raises:
        UsageError: The folder is another run's, or one of a run that was not supervised.
    """
    mark = folder / MARK
    if mark.exists():
        noted = str(json.loads(mark.read_text())["name"])
        if given is not None and given != noted:
            raise UsageError(
                f"name={given!r}: log_path {folder} is that of run {noted!r}; give another log_path"
            )
        return noted
    if any("state_path" in record for record in _read(folder / CHECKPOINTS)):
        raise UsageError(
            f"log_path {folder} has checkpoints of a run that was not supervised: give another "
            "log_path, and load_checkpoint_path= to start from one of them"
        )
    folder.mkdir(parents=True, exist_ok=True)
    name = given or f"{folder.name}-{secrets.token_hex(3)}"
    _write(mark, json.dumps({"name": name}) + "\n")
    return name


def begin(
    folder: Path,
    attempt: int,
    *,
    batch: int,
    an_epoch: int | None,
    record: Mapping[str, Any] | None,
) -> None:
    """Have the folder say that the recipe stands before this batch.

    Metrics and records of what comes after belong to what was abandoned: they are moved to files
    beside, ``metrics.jsonl.abandoned-ATTEMPT`` and the like. A step before it that has no metrics
    gets a row that says so (:data:`UNSEEN`).

    Args:
        folder: The recipe's log folder.
        attempt: Number of the attempt that begins.
        batch: The first iteration to come, counted over all epochs.
        an_epoch: Batches of an epoch; None for a recipe that does not count epochs.
        record: What the recipe is to resume from; None to start over.
    """

    def stands_at(row: Mapping[str, Any]) -> float:
        epoch = row.get("epoch") or 0
        return _whole(row.get("batch")) + (0 if an_epoch is None else epoch * an_epoch)

    _cut(folder / METRICS, attempt, lambda row: _whole(row.get("step")) >= batch)
    _fill(folder / METRICS, batch)
    _cut(folder / CHECKPOINTS, attempt, lambda row: record is None or stands_at(row) > batch)
    if record is not None:
        at = (
            {"batch": batch}
            if an_epoch is None
            else dict(zip(("epoch", "batch"), divmod(batch, an_epoch), strict=True))
        )
        with (folder / CHECKPOINTS).open("a") as file:
            file.write(json.dumps({**record, **at}) + "\n")


def _fill(file: Path, batch: int) -> None:
    """Have each step that is in the weights stand in the metrics.

    A recipe that submits ahead had not seen the results of the last ones when the fault came.
    """
    logged = {_whole(row.get("step")) for row in _read(file)}
    unseen = [step for step in range(batch) if step not in logged]
    if unseen:
        with file.open("a") as metrics:
            metrics.writelines(json.dumps({"step": step, UNSEEN: 1}) + "\n" for step in unseen)


def totals(folder: Path, batch: int) -> dict[str, Any]:
    """The tokens used by then, as far as the recipe has logged them, by its records' own names."""
    rows = [row for row in _read(folder / METRICS) if 0 <= _whole(row.get("step")) < batch]
    found = {
        name.removeprefix(TOKENS): value
        for row in rows[-1:]
        for name, value in row.items()
        if name.startswith(TOKENS)
    }
    return {"elapsed_tokens": found.get("trained", 0), "cumulative_tokens": found} if found else {}


def _whole(value: object) -> int:
    return value if isinstance(value, int) else -1


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [row for line in file.read_text().splitlines() if (row := _row(line)) is not None]


def _row(line: str) -> dict[str, Any] | None:
    # The last line may have been cut by a kill.
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _cut(file: Path, attempt: int, gone: Callable[[Mapping[str, Any]], bool]) -> None:
    if not file.exists():
        return
    kept: list[str] = []
    cut: list[str] = []
    for line in file.read_text().splitlines():
        row = _row(line)
        (cut if row is None or gone(row) else kept).append(line + "\n")
    if not cut:
        return
    beside = file.with_name(f"{file.name}.abandoned-{attempt}")
    with beside.open("a") as abandoned:
        abandoned.writelines(cut)
    _write(file, "".join(kept))


def _write(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    part.write_text(text)
    part.replace(file)
