"""Which sampler weights go: a pure decision."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinker import types

from tinker_recovery.checkpoints import Listed
from tinker_recovery.checkpoints.sampler_plan import plan_sampler_deletions, run_id_of_any
from tinker_recovery.errors import UsageError

NOW = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def listed(name: str, age: timedelta, *, run: str = "r", public: bool = False) -> Listed:
    return Listed.read(
        types.Checkpoint(
            checkpoint_id=f"sampler_weights/{name}",
            checkpoint_type="sampler",
            time=NOW - age,
            tinker_path=f"tinker://{run}/sampler_weights/{name}",
            size_bytes=7,
            public=public,
        )
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.booleans(), st.sampled_from(["", "pinned", "exported"])),
        max_size=12,
    ),
    st.integers(0, 5),
    st.booleans(),
    st.randoms(),
)
def test_the_newest_the_pinned_and_the_published_stay_in_whatever_order_they_are_listed(
    drawn: list[tuple[int, bool, str]],
    keep_last: int,
    known: bool,  # noqa: FBT001 - hypothesis's parameter
    random: object,
) -> None:
    every = [listed(str(n), age * DAY, public=public) for n, (age, public, _) in enumerate(drawn)]
    pinned, exported = (
        {each.path: "why" for each, (_, _, by) in zip(every, drawn, strict=True) if by == word}
        for word in ("pinned", "exported")
    )
    shuffled = list(every)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # random.Random

    def plan(of: list[Listed]) -> dict[str, bool]:
        found = plan_sampler_deletions(
            of,
            keep_last=keep_last,
            pinned=pinned,
            exported=exported,
            known={"r"} if known else set(),
            now=NOW,
            least_age=DAY,
        )
        return {each.path: each.delete for each in found.checkpoints}

    found = plan(every)
    assert found == plan(shuffled)
    newest = sorted(every, key=lambda each: (each.stored_at, each.path), reverse=True)
    kept = newest[: max(1, keep_last)]
    for each, (age, public, by) in zip(every, drawn, strict=True):
        protected = public or by != "" or each in kept or (not known and age < 1)
        assert found[each.path] is not protected


def test_a_path_of_another_form_is_refused() -> None:
    assert run_id_of_any("tinker://r/sampler_weights/x") == "r"
    assert run_id_of_any("tinker://r/weights/x") == "r"
    with pytest.raises(UsageError, match="sampler_weights/NAME"):
        run_id_of_any("tinker://r/external_weights/x")
