"""Retention through random histories, with fixed seeds; benchmarks/keeping.py plays many."""

from __future__ import annotations

from pathlib import Path

import pytest
from _keeping import play


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nothing_is_deleted_that_must_not_be_and_a_good_checkpoint_is_always_left(
    seed: int, tmp_path: Path
) -> None:
    history = await play(seed, tmp_path, acts=12)
    assert not history.violation
    assert history.seen["saved"]
    assert history.seen["collected"] + history.seen["died"]
