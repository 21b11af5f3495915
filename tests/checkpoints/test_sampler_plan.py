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


def _reasons(*every: Listed, keep_last: int = 1, known: set[str] | None = None) -> dict[str, str]:
    found = plan_sampler_deletions(
        every,
        keep_last=keep_last,
        pinned={"tinker://r/sampler_weights/pinned": "by hand"},
        exported={"tinker://r/sampler_weights/exported": "it is being exported"},
        known=known or set(),
        now=NOW,
        least_age=DAY,
    )
    assert [each.path for each in found.kept] == [
        each.path for each in found.checkpoints if each.reason != "no rule keeps it"
    ]
    return {each.path.rpartition("/")[2]: each.reason for each in found.checkpoints}


def test_each_says_why_it_stays() -> None:
    newest, old = listed("newest", DAY), listed("old", 9 * DAY)
    rest = [
        *(listed(name, 9 * DAY) for name in ("pinned", "exported")),
        listed("public", 9 * DAY, public=True),
    ]
    assert _reasons(old, newest, *rest) == {
        "newest": "one of the newest",
        "pinned": "pinned: by hand",
        "exported": "it is being exported",
        "public": "published",
        "old": "no rule keeps it",
    }


def test_what_has_no_date_stays_and_takes_the_place_of_none_that_has_one() -> None:
    undated = Listed("tinker://r/sampler_weights/undated", None)
    order = [undated, listed("newest", 3 * DAY), listed("old", 9 * DAY)]
    for every in (order, order[::-1]):
        assert _reasons(*every) == {
            "newest": "one of the newest",
            "undated": "nobody says when it was stored",
            "old": "no rule keeps it",
        }


def test_a_young_one_of_a_run_that_the_journal_does_not_know_stays_until_it_is_a_day_old() -> None:
    def second(age: timedelta, known: set[str] | None = None) -> str:
        return _reasons(listed("a", timedelta(0)), listed("b", age), known=known)["b"]

    moment = timedelta(seconds=1)
    assert second(DAY - moment).startswith("young, and of a run that is not in this machine")
    assert second(DAY) == second(DAY - moment, {"r"}) == "no rule keeps it"


def test_of_one_date_the_last_by_path_is_the_newest_and_no_fewer_than_one_stays() -> None:
    pair = listed("a", 2 * DAY), listed("b", 2 * DAY)
    for order in (pair, pair[::-1]):
        for least in (0, 1):
            assert _reasons(*order, keep_last=least)["b"] == "one of the newest"
            assert _reasons(*order, keep_last=least)["a"] == "no rule keeps it"
        assert _reasons(*order, keep_last=2)["a"] == "one of the newest"


def test_a_path_of_another_form_is_refused() -> None:
    assert run_id_of_any("tinker://r/sampler_weights/x") == "r"
    assert run_id_of_any("tinker://r/weights/x") == "r"
    with pytest.raises(UsageError, match="sampler_weights/NAME"):
        run_id_of_any("tinker://r/external_weights/x")
