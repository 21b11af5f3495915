"""Which of the reported losses are written."""

from __future__ import annotations

from tinker_recovery.journal.sampling import Point, Sampler


def _point(step: int, loss: float) -> Point:
    return Point(step, float(step), loss, {})


def test_a_spike_that_is_held_back_is_written_with_the_next_and_not_after_a_rewind() -> None:
    for rewinds in (False, True):
        sampler = Sampler(at_once=30)
        for step in range(30):
            assert len(sampler.due(_point(step, 1.0 + step % 2 / 100), 3600.0)) == 1
        assert sampler.due(_point(30, 90.0), 3600.0) == []
        if rewinds:
            sampler.goes_back()
        written = sampler.due(_point(20, 1.0), 0.0)
        assert [each.step for each in written] == ([20] if rewinds else [30, 20])
