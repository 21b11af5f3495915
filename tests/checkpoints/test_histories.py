from __future__ import annotations

from collections import Counter

import histories


def test_no_history_of_faults_and_crashes_deletes_what_it_must_not() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
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
