"""The decisions over checkpoints at their edges: the first and last that count, ties, no facts."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from typing import Any

import pytest
from made import LINEAGE, NOW, listed, path, record, segment, stored

from tinker_recovery import UsageError
from tinker_recovery.checkpoints import (
    DeletionPlan,
    Listed,
    Situation,
    WeightsFacts,
    plan_deletions,
)
from tinker_recovery.checkpoints.evidence import Evidence
from tinker_recovery.checkpoints.interval import AutoInterval
from tinker_recovery.checkpoints.ledger import SaveLedger
from tinker_recovery.checkpoints.lineage import eligible, on_branch, segments_of
from tinker_recovery.checkpoints.metadata import JSON_LIMIT, encode_loop_state
from tinker_recovery.checkpoints.record import with_canaries
from tinker_recovery.checkpoints.retention import KeepLast
from tinker_recovery.checkpoints.safetensors_header import (
    BITS,
    LENGTH,
    MAX_HEADER,
    DamagedFile,
    header_length,
    read_header,
)
from tinker_recovery.checkpoints.schedule import EverySteps
from tinker_recovery.checkpoints.validation import (
    EXPIRY_MARGIN,
    check_listing,
    check_weights,
)

# -- what may be restored ------------------------------------------------------------------------


def test_a_segment_counts_from_the_step_it_began_at_to_its_limit_and_of_its_own_attempt() -> None:
    began = segment("b", 5, path("a", 5))
    found = [record(step, "b") for step in (4, 5, 7, 9, 10)] + [record(6, "b", attempt="other")]
    assert [each.step for each in eligible(began, 9, found)] == [9, 7, 5]


def test_an_older_segment_counts_up_to_the_step_at_which_the_next_branched_off() -> None:
    segments = [segment("a"), segment("b", 5, path("a", 5)), segment("c", 3, path("a", 3))]
    assert [(each.run_id, limit) for each, limit in on_branch(segments)] == [
        ("c", math.inf),
        ("a", 3),
    ]


def test_an_attempt_without_a_parent_began_at_step_0() -> None:
    (found,) = segments_of([record(7), record(9)])
    assert (found.start_step, found.parent) == (0, None)


# -- what is deleted -----------------------------------------------------------------------------


def _plan(found: list[Listed], keep_last: int = 1, **known: Any) -> DeletionPlan:
    given = {"lineage": LINEAGE, "now": NOW, "valid": {each.path for each in found}, **known}
    return plan_deletions(found, KeepLast(keep_last), Situation(**given))


def _deleted(plan: DeletionPlan) -> list[int | None]:
    return [each.step for each in plan.deletions]


MARGIN_S = EXPIRY_MARGIN.total_seconds()


@pytest.mark.parametrize(
    ("newest", "known"),
    [
        (listed(3, lineage="theirs"), {}),
        (listed(3, expires_in_s=60), {}),
        (listed(3, expires_in_s=MARGIN_S), {}),
        (listed(3, saved_by="user"), {}),
        (listed(3), {"bad": {path("a", 3): "zero tail"}}),
        (listed(3), {"being_deleted": {path("a", 3)}}),
        (listed(3, "x"), {"segments": [segment("a")]}),
        (
            listed(30, "x"),
            {"segments": [segment("x"), segment("a", 0, path("x", 0))]},
        ),
    ],
    ids=["foreign", "expired", "at the margin", "user", "bad", "going", "unknown", "abandoned"],
)
def test_the_newest_that_does_not_count_keeps_the_newest_that_does_from_nothing(
    newest: Listed, known: dict[str, Any]
) -> None:
    assert _deleted(_plan([listed(1), listed(2), newest], **known)) == [1]


def test_one_that_expires_right_behind_the_margin_counts() -> None:
    newest = listed(3, expires_in_s=MARGIN_S + 1)
    plan = _plan([listed(1), listed(2), newest])
    assert _deleted(plan) == [1], "and the newest that lasts is kept as well"
    assert _deleted(_plan([listed(1), listed(2), newest], lasting=timedelta(0))) == [1, 2]


def test_the_newest_is_the_one_with_the_most_steps_whatever_was_stored_last() -> None:
    late, early = NOW + timedelta(hours=1), NOW
    found = [listed(9, time=late), listed(10, time=early), listed(11, time=early)]
    assert _deleted(_plan(found)) == [9, 10], "by number, not as texts"
    same = [listed(9, "a", time=early), listed(9, "b", time=late)]
    assert [each.path for each in _plan(same).deletions] == [path("a", 9)]
    other = [listed(9, "a", time=late), listed(9, "b", time=early)]
    assert [each.path for each in _plan(other).deletions] == [path("b", 9)]
    for order in ([listed(9, "a", time=late), listed(9, "b", time=late)], [*other, listed(9, "c")]):
        assert _plan(order) == _plan(order[::-1]), "and by path, whatever the order"


def test_what_is_not_ours_says_what_is_wrong_with_it() -> None:
    odd = Listed(path("a", 9), None, "its step is no number", 10)
    bare = Listed(path("a", 8), None, None, 10)
    reasons = {each.path: each.reason for each in _plan([odd, bare, listed(1)]).kept}
    assert reasons[odd.path] == "not ours to delete: its step is no number"
    assert reasons[bare.path] == "not ours to delete: it has no tinker_recovery metadata"


def test_two_entries_with_the_same_facts_are_the_same_whatever_they_were_read_from() -> None:
    ours = {"tinker_recovery.format": "0"}
    one, two = Listed.read(stored(ours)), Listed.read(stored(ours))
    assert one == two
    assert "Checkpoint(" not in repr(one)
    assert Listed.of(record(4)).stored_at == record(4).time
    assert Listed.of(record(4, expires_in_s=5)).expires_at == NOW + timedelta(seconds=5)


def test_a_fingerprint_goes_to_the_checkpoint_it_is_of_and_no_other_is_changed() -> None:
    later = record(6).model_copy(update={"previous_canary": (4, "said")})
    other = record(4, "b").model_copy(update={"canary": "own"})
    found = with_canaries([record(2), record(4), other, later])
    assert [each.canary for each in found] == [None, "said", "own", None]


# -- whether it is valid -------------------------------------------------------------------------


def test_a_size_is_compared_with_the_one_on_record_and_only_nothing_at_all_is_too_small() -> None:
    small = listed(1, size_bytes=1)
    at = small.path
    assert check_listing(at, {at: small}, now=NOW).ok
    assert check_listing(at, {at: small}, now=NOW, recorded_size=1).ok
    assert not check_listing(at, {at: small}, now=NOW, recorded_size=2).ok
    unknown = {at: listed(1, size_bytes=None)}
    assert check_listing(at, unknown, now=NOW, recorded_size=2).ok
    assert not check_listing(at, {at: listed(1, size_bytes=0)}, now=NOW).ok


def test_the_margin_before_it_expires_is_too_late_to_load_it() -> None:
    for seconds, ok in ((MARGIN_S, False), (MARGIN_S + 1, True)):
        ends = listed(1, expires_in_s=seconds)
        assert check_listing(ends.path, {ends.path: ends}, now=NOW).ok == ok


def test_weights_that_fit_say_so_and_what_is_unknown_is_not_compared() -> None:
    known = WeightsFacts("model", 8, train_attn=True)
    assert check_weights(known, known).reason == "they fit the run"
    assert check_weights(WeightsFacts(), known).ok
    assert check_weights(known, WeightsFacts()).ok
    differing = check_weights(WeightsFacts("other", 16), known)
    assert differing.reason.count("and the run has") == 2


def _header(**tensors: dict[str, object]) -> bytes:
    return json.dumps(tensors).encode()


def _tensor(dtype: str, begin: int, end: int, *shape: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_eight_elements_of_every_dtype_take_as_many_bytes_as_one_has_bits(dtype: str) -> None:
    digits = "".join(each for each in dtype.partition("_")[0] if each.isdigit())
    bits = int(digits or 8)
    header = _header(x=_tensor(dtype, 0, bits, 8))
    start = LENGTH.size + len(header)
    (tensor,) = read_header(header, start + bits)
    assert (tensor.begin, tensor.end) == (start, start + bits)
    with pytest.raises(DamagedFile):
        read_header(_header(x=_tensor(dtype, 0, bits + 1, 8)), start + bits + 1)


def test_an_empty_tensor_may_share_its_offset_with_the_next_in_any_order() -> None:
    for names in (("a", "b"), ("b", "a")):
        facts = dict(zip(names, (_tensor("U8", 0, 0, 0), _tensor("U8", 0, 4, 4)), strict=True))
        header = _header(**dict(sorted(facts.items())))
        assert len(read_header(header, LENGTH.size + len(header) + 4)) == 2


def test_a_hole_and_an_overlap_are_named_with_their_bytes() -> None:
    for begin, word in ((5, "a hole of 1 bytes"), (3, "an overlap of 1 bytes")):
        header = _header(a=_tensor("U8", 0, 4, 4), b=_tensor("U8", begin, begin + 4, 4))
        with pytest.raises(DamagedFile, match=word):
            read_header(header, LENGTH.size + len(header) + 9)


def test_a_tensor_that_ends_before_it_begins_is_refused_though_it_has_no_elements() -> None:
    header = _header(a=_tensor("U8", 4, 0, 0))
    with pytest.raises(DamagedFile):
        read_header(header, LENGTH.size + len(header))


def test_a_header_may_be_as_long_as_the_file_has_room_for() -> None:
    def first(length: int) -> bytes:
        return LENGTH.pack(length)

    assert header_length(first(2), 10) == 2
    assert header_length(first(MAX_HEADER), 10**9) == MAX_HEADER
    for length, size in ((1, 10), (3, 10), (MAX_HEADER + 1, 10**9)):
        with pytest.raises(DamagedFile):
            header_length(first(length), size)
    with pytest.raises(DamagedFile):
        header_length(first(2)[:7], 10)


def test_a_loop_state_may_take_just_as_many_bytes_as_are_allowed_and_not_one_more() -> None:
    text = "x" * (JSON_LIMIT - 2)
    assert encode_loop_state(text) == f'"{text}"'
    with pytest.raises(UsageError, match=f"takes {JSON_LIMIT + 1} bytes"):
        encode_loop_state(text + "x")
    assert encode_loop_state("\u00fc") == '"\u00fc"', "as it is: two bytes and not six"
    assert encode_loop_state([None, True, 1, 1.5]) == "[null,true,1,1.5]"


# -- when to save --------------------------------------------------------------------------------


def test_a_ledger_without_a_save_in_flight_is_not_changed_by_an_answer() -> None:
    ledger = SaveLedger(0, 0.0)
    assert ledger.stored(5) is ledger
    assert ledger.failed(5) == (ledger, False)
    begun = ledger.began(step=5, now_s=1.0)
    assert begun.stored(6) is begun
    assert begun.failed(6) == (begun, False)


def test_a_failed_save_is_due_at_the_next_step_until_one_is_stored() -> None:
    never = EverySteps(1000)
    ledger = SaveLedger(5, 0.0, 2)
    for number in (1, 2):
        ledger, report = ledger.began(step=5 + number, now_s=1.0).failed(5 + number)
        assert (ledger.failures, report, ledger.in_flight) == (number, number == 1, ())
    assert not ledger.ask(never, step=5, now_s=2.0).due, "nothing new since the last stored one"
    assert ledger.ask(never, step=6, now_s=2.0).due
    stored_ = ledger.began(step=8, now_s=3.0, epoch=4).stored(8)
    assert (stored_.failures, stored_.last_step, stored_.last_epoch) == (0, 8, 4)
    assert not stored_.ask(never, step=9, now_s=4.0).due


def test_the_save_at_the_start_is_of_the_step_that_counts_as_saved_and_begins_the_series() -> None:
    stored_ = SaveLedger(3, 0.0).began(step=3, now_s=5.0, epoch=1).stored(3)
    assert (stored_.last_step, stored_.last_s, stored_.last_epoch) == (3, 5.0, 1)
    assert stored_.in_flight == ()


def test_a_save_without_an_epoch_is_in_that_of_the_last() -> None:
    assert SaveLedger(0, 0.0, 3).began(step=1, now_s=0.0).stored(1).last_epoch == 3
    assert SaveLedger(0, 0.0, 3).began(step=1, now_s=0.0, epoch=0).stored(1).last_epoch == 0


def test_the_extremes_of_every_metric_are_of_all_stored_saves_and_finite() -> None:
    ledger = SaveLedger(0, 0.0)
    for step, loss in enumerate((2.0, 5.0, math.nan, 1.0, math.inf), 1):
        metrics = {"loss": loss} if step != 2 else {"loss": loss, "acc": 0.5}
        ledger = ledger.began(step=step, now_s=0.0, metrics=metrics).stored(step)
    assert ledger.lowest == {"loss": 1.0, "acc": 0.5}
    assert ledger.highest == {"loss": 5.0, "acc": 0.5}


def test_auto_asks_with_what_was_measured_and_without_it_by_the_clock() -> None:
    auto = AutoInterval(prior_mtbf_s=3600.0, prior_weight=1.0, max_steps=400)
    ledger = SaveLedger(0, 0.0)
    measured = Evidence(steps=1, step_s=2.0, saves=1, save_s=60.0)
    assert ledger.ask(auto, step=309, now_s=0.0, evidence=measured).due
    assert not ledger.ask(auto, step=309, now_s=0.0).due
    assert ledger.ask(auto, step=400, now_s=0.0).due
