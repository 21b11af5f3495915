from __future__ import annotations

from collections import Counter

import histories
import pytest


@pytest.mark.parametrize("block", range(3))
def test_no_history_of_faults_and_crashes_deletes_what_it_must_not(block: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(block * 50, block * 50 + 50):
        seen += histories.history(seed)
    # It did happen: a quiet history proves nothing.
    quiet = [
        what
        for what in (
            "saved",
            "deleted",
            "recovered",
            "crashed",
            "corrupted",
            "renewed",
            "delete done",
            "delete done, unheard",
            "delete late",
            "delete lost",
            "delete refused",
        )
        if seen[what] < 20
    ]
    assert not quiet
