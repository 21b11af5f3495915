"""Counting updates and the iterations they make up: a pure decision."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.errors import UsageError
from tinker_recovery.service.iteration import Iterations

Length = int | Literal["skipped"]
"""How many updates an iteration has."""


@given(data=st.data(), start=st.integers(0, 9), per_step=st.integers(1, 5))
def test_a_step_is_counted_with_the_last_update_of_each_iteration_and_nowhere_else(
    data: st.DataObject, start: int, per_step: int
) -> None:
    at = Iterations(start, per_step)
    lengths: list[Length] = data.draw(
        st.lists(st.integers(1, per_step) | st.just("skipped"), max_size=9)
    )
    updates = 0
    for ended, length in enumerate(lengths):
        assert (at.step, at.begun, at.inside) == (start + ended, start + ended, False)
        at.check_whole("may be asked")
        if length == "skipped":
            assert at.ended() == (start + ended + 1, None)
            continue
        for update in range(1, length + 1):
            at.passed()
            whole = at.updated()
            updates += 1
            assert whole == (update == per_step)
            assert (at.step, at.begun, at.inside) == (start + ended, start + ended + 1, True)
            with pytest.raises(UsageError, match=f"after {update} of {per_step} optimizer steps"):
                at.check_whole("may not be asked")
        assert at.ended() == (start + ended + 1, 1.0)
    assert at.weights == updates
