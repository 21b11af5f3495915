"""The name of a save says what a service that keeps no metadata would otherwise lose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.checkpoints.naming import SaveName, lineage_by_mark, mark_of

MARKS = st.text("0123456789abcdef", min_size=8, max_size=8)
NAMES = st.builds(
    SaveName,
    step=st.integers(0, 10**9),
    attempt=MARKS,
    run=MARKS,
    lineage=MARKS,
    lag=st.integers(0, 10**6),
    has_state=st.booleans(),
    again=st.integers(0, 10**3),
)


@given(NAMES)
def test_a_name_reads_as_it_was_written_and_can_be_a_checkpoints(name: SaveName) -> None:
    assert SaveName.read(str(name)) == name
    assert set(str(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize(
    "foreign",
    [
        "latest",
        "step-12",
        "step-00000012-1f2e3d4c",
        "step-00000012-1f2e3d4c-0a1b2c3d4e5f607",
        "step-00000012-1f2e3d4c-0a1b2c3d4e5f6071-lag",
        "step-00000012-1f2e3d4c-0a1b2c3d4e5f6071-mine",
        "my-step-00000012-1f2e3d4c-0a1b2c3d4e5f6071",
    ],
)
def test_any_other_name_is_not_ours(foreign: str) -> None:
    assert SaveName.read(foreign) is None


@given(st.text())
def test_a_lineage_known_by_its_mark_alone_has_that_mark(lineage: str) -> None:
    mark = mark_of(lineage)
    assert mark_of(lineage_by_mark(mark)) == mark
