"""The canary's prompt: what it is made of, and how it is known again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import batch
from made import record
from pydantic import ValidationError
from tinker import types

from tinker_recovery import CheckpointPolicy, RecoveryPolicy
from tinker_recovery.checkpoints import Canary, check_canary, checkpoint_metadata, with_canaries
from tinker_recovery.checkpoints.canary import ASKED
from tinker_recovery.checkpoints.prompt import (
    PROMPT_TOKENS,
    CanaryPrompt,
    PromptFacts,
    digest_of,
    prompt_of,
    tokens_of,
)

IMAGE = types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=4)
SEEN = types.Datum(model_input=types.ModelInput(chunks=[IMAGE]), loss_fn_inputs={})
DOCS = Path(__file__).parents[2] / "docs" / "canary.md"


def of(*tokens: int) -> types.Datum:
    return types.Datum(model_input=types.ModelInput.from_ints(list(tokens)), loss_fn_inputs={})


FACTS = st.builds(
    PromptFacts,
    st.text("0123456789abcdef", min_size=12, max_size=12),
    st.floats(0, 100),
    st.lists(st.integers(0, 200_000), max_size=PROMPT_TOKENS + 1).map(tuple),
)


@given(facts=FACTS)
def test_what_is_stored_of_a_prompt_survives_as_a_short_string(facts: PromptFacts) -> None:
    assert PromptFacts.parse(str(facts)) == facts
    assert len(str(facts)) < 600


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "[]",
        "{",
        '{"prompt":"ab"}',
        '{"prompt":"ab","noise":NaN}',
        '{"prompt":"ab","noise":-1}',
        '{"prompt":"ab","noise":0,"tokens":["a"]}',
        '{"prompt":"ab","noise":0,"tokens":7}',
    ],
)
def test_what_cannot_be_read_of_it_counts_as_not_known(text: str) -> None:
    assert PromptFacts.parse(text) is None


def test_it_is_made_of_the_longest_datum_of_the_first_batch_and_of_64_tokens_at_most() -> None:
    long = of(*range(100, 200))
    assert tokens_of([of(1, 2, 3), long, of(4)]) == tuple(range(100, 165))
    (datum,) = prompt_of(tokens_of([long]))
    assert datum.model_input.length == PROMPT_TOKENS
    assert datum.loss_fn_inputs["target_tokens"].data == list(range(101, 165))
    assert datum.loss_fn_inputs["weights"].data == [1.0] * PROMPT_TOKENS


@pytest.mark.parametrize("data", [[], [of(7)], [SEEN], [of(1, 2, 3), SEEN]])
def test_nothing_is_made_of_images_or_of_less_than_two_tokens(data: list[types.Datum]) -> None:
    assert tokens_of(data) == ()


def test_it_is_set_once_and_the_same_tokens_make_the_same_prompt() -> None:
    one, other = CanaryPrompt("auto"), CanaryPrompt("auto")
    assert one.make_of([1]) is False, "that is too short, so it is still to come"
    assert one.make_of([1, 2, 3])
    assert other.make_of((1, 2, 3))
    assert not one.make_of([4, 5, 6])
    assert one.digest == other.digest == digest_of(prompt_of([1, 2, 3]))
    one.drop("refused")
    assert (one.pending, one.batch, one.digest, one.problem) == (False, None, "", "refused")


def test_a_batch_of_the_users_is_the_prompt_and_none_is_none() -> None:
    data = tuple(batch(3))
    given, none = CanaryPrompt(data), CanaryPrompt(None)
    assert (given.batch, given.tokens, given.auto) == (list(data), (), False)
    assert given.digest == CanaryPrompt(batch(3)).digest != CanaryPrompt(batch(4)).digest
    assert not given.make_of([1, 2])
    assert not none.make_of([1, 2])
    assert none.batch is None


def test_targets_and_weights_are_part_of_what_a_prompt_is() -> None:
    (datum,) = prompt_of([1, 2, 3])
    changed = datum.loss_fn_inputs | {
        "weights": types.TensorData(data=[1.0, 0.0], dtype="float32", shape=[2])
    }
    other = types.Datum(model_input=datum.model_input, loss_fn_inputs=changed)
    assert digest_of([datum]) != digest_of([other])


def test_a_canary_with_images_is_refused_with_the_reason() -> None:
    with pytest.raises(ValidationError, match=r"canary has images.*differently each time"):
        RecoveryPolicy(canary=(SEEN,))


def test_the_fingerprint_comes_with_the_prompt_of_the_checkpoint_that_carries_it() -> None:
    facts = PromptFacts("ab", 0.01)
    earlier = record(5)
    later = record(10).model_copy(
        update={"previous_canary": (5, str(Canary.of([1.0]))), "canary_prompt": facts}
    )
    found, newest = with_canaries([earlier, later])
    assert (found.canary, found.canary_about) == (str(Canary.of([1.0])), facts)
    assert (newest.canary, newest.canary_about) == (None, None)
    stored = checkpoint_metadata(
        step=5,
        lineage="l",
        attempt="a",
        parent=None,
        saved_by="schedule",
        canary_prompt=facts,
    )
    assert PromptFacts.parse(stored["tinker_recovery.canary_prompt"]) == facts


@pytest.mark.parametrize(
    ("prompt", "seen", "ok", "reason"),
    [
        ("ab", 1.04, True, "differ by up to 0.04"),
        ("ab", 1.05, False, "0.04 is allowed"),
        ("cd", 9.0, True, "another one"),
        ("", 9.0, False, "0.04 is allowed"),
    ],
)
def test_a_verification_allows_for_the_noise_and_compares_no_other_prompt(
    prompt: str, seen: float, reason: str, *, ok: bool
) -> None:
    about = PromptFacts("ab", 0.01)
    stored = record(7).model_copy(update={"canary": str(Canary.of([1.0])), "canary_about": about})
    finding = check_canary(stored, Canary.of([seen]), prompt=prompt)
    assert finding.ok is ok
    assert reason in finding.reason


def test_what_a_healthy_hour_costs_is_what_the_docs_say() -> None:
    """Of a run of one step a second, with the default settings."""
    hour = 3600
    saves = hour // CheckpointPolicy().save_every
    passes = ASKED + saves
    looks = int(hour / RecoveryPolicy().poll_interval_s)
    text = DOCS.read_text()
    assert (
        f"| asked at the start and at each save | {passes} | {passes * PROMPT_TOKENS:,} |" in text
    )
    assert f"| {looks} at most | {looks * PROMPT_TOKENS:,} at most |" in text
