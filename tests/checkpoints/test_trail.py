"""Trails are equal where weights are, and only there."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.checkpoints import CheckpointRecord, Segment
from tinker_recovery.checkpoints.trail import Trail, digest_of, trail_at_start
from tinker_recovery.run.recall import floor_of

PATH = "tinker://run/weights/step-5"


def record(**changes: object) -> CheckpointRecord:
    plain = {
        "path": PATH,
        "run_id": "run",
        "step": 5,
        "lineage": "line",
        "attempt": "first",
        "parent": None,
        "saved_by": "schedule",
        "time": datetime.now(UTC),
        "size_bytes": 1,
        "expires_at": None,
        "public": False,
    }
    return CheckpointRecord.model_validate(plain | changes)


def started(
    attempt: str = "second",
    checkpoint: CheckpointRecord | None = None,
    *,
    exact: bool = True,
    began_at: int | None = None,
) -> str:
    segment = Segment("other", attempt, 5, None)
    return trail_at_start(segment, checkpoint, exact=exact, began_at=began_at)


def test_an_exact_restore_has_the_trail_of_its_checkpoint() -> None:
    assert started(checkpoint=record(trail="abc")) == "abc"


def test_a_restore_of_the_weights_alone_and_a_start_over_are_like_nothing_else() -> None:
    one = record(trail="abc")
    trails = [
        started("second", one, exact=False),
        started("third", one, exact=False),
        started("fourth"),
        started("fifth"),
        started("sixth", one),
    ]
    assert len(set(trails)) == len(trails)


def test_what_was_saved_at_its_attempts_start_has_the_trail_of_that_start() -> None:
    assert started(checkpoint=record(step=0), began_at=0) == started("first")
    assert started(checkpoint=record(step=5), began_at=0) == digest_of("checkpoint", PATH)
    assert started(checkpoint=record(step=0), began_at=None) == digest_of("checkpoint", PATH)


steps = st.lists(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.lists(st.integers(0, 2)))), max_size=5
)


def followed(done: list[list[tuple[str, list[int]]]]) -> str:
    trail = Trail("start", step=3, follows=True)
    for step in done:
        for operation, data in step:
            trail.passed(operation, data)
        trail.stepped(skipped=False)
    assert trail.position() == (3 + len(done), trail.followed)
    return str(trail.followed)


@given(steps, steps)
def test_trails_are_equal_exactly_if_the_same_was_submitted(
    one: list[list[tuple[str, list[int]]]], other: list[list[tuple[str, list[int]]]]
) -> None:
    assert (followed(one) == followed(other)) == (one == other)


def test_what_is_submitted_within_a_step_changes_its_weights_only_with_the_optimizer_step() -> None:
    trail = Trail("start", step=0, follows=True)
    trail.passed("forward_backward", [1])
    assert trail.position() == (0, "start")
    trail.stepped(skipped=False)
    assert trail.position() != (1, "start")


def test_a_step_left_out_is_not_one_that_was_done() -> None:
    trails = [Trail("start", step=0, follows=True) for _ in range(2)]
    for trail, skipped in zip(trails, (True, False), strict=True):
        trail.stepped(skipped=skipped)
    assert trails[0].position() != trails[1].position()


def test_what_was_not_followed_from_the_beginning_is_like_nothing_else() -> None:
    trails = [Trail("start", step=0, follows=False) for _ in range(2)]
    for trail in trails:
        trail.passed("forward_backward", [1])
        trail.stepped(skipped=False)
        assert trail.followed is None
        trail.follow()
    assert trails[0].position() != trails[1].position()
    alone = Trail("start", step=0, follows=False)
    alone.stepped(skipped=False)
    alone.follow()
    assert alone.position() != (1, "start"), "nor is a step whose requests nobody noted"
    fresh = Trail("start", step=0, follows=False)
    fresh.follow()
    assert fresh.position() == (0, "start")


def test_data_of_a_type_of_the_users_own_is_never_taken_for_equal() -> None:
    trails = [Trail("start", step=0, follows=True) for _ in range(2)]
    for trail in trails:
        trail.passed("forward_backward", object())
        trail.stepped(skipped=False)
    assert trails[0].position() != trails[1].position()


def test_a_custom_loss_is_compared_by_its_name() -> None:
    trails = [Trail("start", step=0, follows=True) for _ in range(3)]
    for trail, loss in zip(trails, (record, record, started), strict=True):
        trail.passed("forward_backward_custom", loss)
        trail.stepped(skipped=False)
    assert trails[0].position() == trails[1].position()
    assert trails[0].position() != trails[2].position()


def test_recoveries_come_back_to_one_of_the_newest_two_confirmed_checkpoints() -> None:
    assert floor_of([]) is None
    assert floor_of([5, 5]) is None
    assert floor_of([5, 15, 10, 10]) == 10


def test_a_trail_that_an_earlier_version_has_stored_is_still_the_one_of_these_requests() -> None:
    """A restored attempt goes on from what its checkpoint says."""
    assert digest_of("attempt", "first") == "3f28aa33fc9171a1f1acf55bbe825a76"
    trail = Trail(digest_of("attempt", "first"), step=0, follows=True)
    trail.passed("forward_backward", [1, 2.5, "x"])
    trail.passed("optim_step", 0.1)
    trail.stepped(skipped=False)
    assert trail.position() == (1, "f3d31a206f9429a9af786b5dc9dcab0d")
    trail.stepped(skipped=True)
    assert trail.position() == (2, "cea3d87134ebaeffc80b07aeb62af5d9")


def test_the_end_of_an_iteration_changes_its_number_and_not_the_weights() -> None:
    trail = Trail("start", step=3, follows=True)
    trail.stepped(skipped=False, ends=False)
    inside = trail.position()
    trail.ended()
    assert (inside[0], trail.position()) == (3, (4, inside[1]))
