"""A recipe's log folder after a rewind, needing no cookbook: each step stands in it once."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.cookbook import log_dir
from tinker_recovery.errors import UsageError


def _write(folder: Path, name: str, rows: list[dict[str, Any]], cut: str = "") -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows) + cut)


def _steps(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


@given(
    logged=st.integers(0, 12),
    batch=st.integers(0, 12),
    attempt=st.integers(2, 4),
    cut=st.sampled_from(["", '{"step": 4', "\n", "[1]\n"]),
)
def test_each_step_before_the_checkpoint_stands_once_in_the_metrics_and_none_after(
    logged: int, batch: int, attempt: int, cut: str
) -> None:
    """However far the recipe had logged when it was left, and wherever a kill cut its last line."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = [{"step": step, "loss": 0.5} for step in range(logged)]
        _write(folder, log_dir.METRICS, rows, cut)
        record = {"state_path": "tinker://r/weights/a", "batch": batch}
        log_dir.begin(folder, attempt, batch=batch, an_epoch=None, record=record)
        metrics = folder / log_dir.METRICS
        assert _steps(metrics) == list(range(batch))
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [row["step"] for row in lines if row.get(log_dir.UNSEEN)] == list(
            range(logged, batch)
        )
        beside = folder / f"{log_dir.METRICS}.abandoned-{attempt}"
        kept_beside = beside.read_text() if beside.exists() else ""
        assert cut.strip() in kept_beside
        for step in range(batch, logged):
            assert json.dumps({"step": step, "loss": 0.5}) in kept_beside


@given(
    saved=st.lists(st.integers(0, 20), max_size=6),
    batch=st.integers(0, 20),
    an_epoch=st.none() | st.integers(1, 7),
)
def test_the_recipe_resumes_from_the_last_record_which_stands_where_the_attempt_begins(
    saved: list[int], batch: int, an_epoch: int | None
) -> None:
    def at(step: int) -> dict[str, Any]:
        if an_epoch is None:
            return {"batch": step}
        return {"epoch": step // an_epoch, "batch": step % an_epoch}

    with TemporaryDirectory() as name:
        folder = Path(name)
        _write(
            folder,
            log_dir.CHECKPOINTS,
            [{"name": f"{step}", "state_path": f"p{step}", **at(step)} for step in sorted(saved)],
        )
        record = {"name": "ours", "state_path": "ours"}
        log_dir.begin(folder, 2, batch=batch, an_epoch=an_epoch, record=record)
        text = (folder / log_dir.CHECKPOINTS).read_text()
        *earlier, last = [json.loads(line) for line in text.splitlines()]
        assert last == {**record, **at(batch)}
        assert [int(row["name"]) for row in earlier] == [s for s in sorted(saved) if s <= batch]


def test_a_folder_stays_the_run_it_was_made_for(tmp_path: Path) -> None:
    name = log_dir.run_name(tmp_path, None)
    assert log_dir.run_name(tmp_path, None) == name
    with pytest.raises(UsageError, match="give another log_path"):
        log_dir.run_name(tmp_path, "another")


def test_a_folder_of_a_recipe_that_was_not_supervised_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, log_dir.CHECKPOINTS, [{"batch": 3, "state_path": "tinker://r/weights/a"}])
    with pytest.raises(UsageError, match="was not supervised"):
        log_dir.run_name(tmp_path, None)
