from __future__ import annotations

import math
import traceback
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from tinker import types

from tinker_recovery import CheckpointPolicy, RecoveryPolicy
from tinker_recovery.jobs import RetryPolicy
from tinker_recovery.policy import CANARY_TOKENS


def test_the_defaults_are_the_ones_the_design_names() -> None:
    policy = RecoveryPolicy()
    assert policy.enabled is True
    assert (policy.max_attempts, policy.backoff_s, policy.max_backoff_s) == (3, 5.0, 60.0)
    assert (policy.poll_interval_s, policy.checkpoint_strategy) == (30.0, "latest")
    assert policy.restore_optimizer is True
    saving = CheckpointPolicy()
    assert (saving.strategy, saving.auto_max_s, saving.keep_last) == ("auto", 1800.0, 5)
    assert (saving.save_best, saving.best_metric, saving.best_mode) == (True, "loss", "min")
    assert (saving.format, saving.push_to_hub) == ("safetensors", False)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("max_attempts", 0, "greater than or equal to 1"),
        ("max_attempts", "many", "valid integer"),
        ("backoff_s", -1.0, "greater than or equal to 0"),
        ("backoff_s", math.nan, "finite number"),
        ("poll_interval_s", 0.0, "greater than 0"),
        ("poll_interval_s", math.inf, "finite number"),
        ("backoff_jitter", 1.5, "less than or equal to 1"),
        ("checkpoint_strategy", "newest", "use 'latest', 'best', 'step:N'"),
        ("checkpoint_strategy", "tinker://run/sampler_weights/x", "use 'latest', 'best', 'step:N'"),
        ("on_recovery", 7, "callable"),
        ("create_timeout_s", 0, "greater than 0"),
    ],
)
def test_a_bad_value_is_refused_with_the_field_the_value_and_what_is_allowed(
    field: str, value: object, allowed: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        RecoveryPolicy.model_validate({field: value})
    said = str(caught.value)
    assert field in said
    assert str(value) in said
    assert allowed in said


@pytest.mark.parametrize(
    ("field", "value"),
    [("save_every", 0), ("strategy", "sometimes"), ("push_to_hub", "me"), ("format", "onnx")],
)
def test_a_bad_checkpoint_policy_is_refused_with_the_field_and_the_value(
    field: str, value: object
) -> None:
    with pytest.raises(ValidationError) as caught:
        CheckpointPolicy.model_validate({field: value})
    assert field in str(caught.value)
    assert str(value) in str(caught.value)


_WITHIN = "RecoveryPolicy(checkpoints=CheckpointPolicy(save_every={}))"
_AROUND = "RecoveryPolicy(max_attempts=5, checkpoints=CheckpointPolicy(...))"


@pytest.mark.parametrize(
    ("model", "values", "meant"),
    [
        (RecoveryPolicy, {"max_atempts": 5}, ": did you mean max_attempts?"),
        (RecoveryPolicy, {"stall_after": 5}, ": did you mean stall_after_s?"),
        (RecoveryPolicy, {"checkpoint": CheckpointPolicy()}, ": did you mean checkpoints?"),
        (
            RecoveryPolicy,
            {"save_every": 20},
            f", but of CheckpointPolicy: {_WITHIN.format(20)}.",
        ),
        (
            RecoveryPolicy,
            {"save_evry": "x" * 99},
            f": did you mean save_every of CheckpointPolicy, {_WITHIN.format('...')}?",
        ),
        (
            CheckpointPolicy,
            {"max_attempts": 5},
            f", but of RecoveryPolicy: {_AROUND}.",
        ),
        (CheckpointPolicy, {"save_evry": "{said}"}, ": did you mean save_every?"),
        (RetryPolicy, {"max_attempt": 5}, ": did you mean max_attempts?"),
        (RecoveryPolicy, {"colour": 5}, "."),
    ],
)
def test_an_unknown_field_is_refused_with_what_may_have_been_meant_and_all_that_is_allowed(
    model: type[BaseModel], values: dict[str, object], meant: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    (name,) = values
    allowed = ", ".join(model.model_fields)
    (error,) = caught.value.errors()
    assert error["loc"] == (name,)
    assert error["msg"] == f"{name} is no field of {model.__name__}{meant} Allowed are {allowed}"
    assert "https://" not in str(caught.value)


@pytest.mark.parametrize("name", ["api_key", "hub_token", "HF_TOKEN", "password", "save_every_key"])
@pytest.mark.parametrize("within", [False, True])
def test_a_secret_given_to_a_policy_that_has_no_field_for_it_is_not_shown(
    name: str, *, within: bool
) -> None:
    given = {name: "open-sesame-123"}
    with pytest.raises(ValidationError) as caught:
        RecoveryPolicy.model_validate({"checkpoints": given} if within else given)
    assert f"{name} is no field of" in str(caught.value)
    shown = f"{caught.value!r} {caught.value.errors()} {caught.value.json()}"
    assert "open-sesame" not in "".join((shown, *traceback.format_exception(caught.value)))


def test_all_that_is_wrong_with_a_policy_is_said_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        RecoveryPolicy.model_validate(
            {"max_attempts": 0, "colour": 1, "stall_after_s": -1, "checkpoints": {"save_evry": 2}}
        )
    assert [each["loc"] for each in caught.value.errors()] == [
        ("max_attempts",),
        ("checkpoints", "save_evry"),
        ("colour",),
        ("stall_after_s",),
    ]
    assert "greater than or equal to 1" in str(caught.value)
    assert "did you mean save_every?" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("stall_after_s", -1, "greater than 0, or 'off', or None"),
        ("stall_after_s", "never", "a valid number, or 'off', or None"),
        ("canary", "on", "a valid tuple, or 'auto', or None"),
        ("canary", [3], "an instance of Datum, or 'auto', or None"),
    ],
)
def test_a_field_of_several_kinds_of_values_is_refused_in_one_error(
    field: str, value: object, said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        RecoveryPolicy.model_validate({field: value})
    (error,) = caught.value.errors()
    assert (error["loc"], error["input"]) == ((field,), value)
    assert error["msg"] == f"Input should be {said}"


@pytest.mark.parametrize("model", [RecoveryPolicy, CheckpointPolicy])
def test_no_field_has_more_than_one_error(model: type[BaseModel]) -> None:
    for name in model.model_fields:
        with pytest.raises(ValidationError) as caught:
            model.model_validate({name: object()})
        assert len(caught.value.errors()) == 1, name


@pytest.mark.parametrize("model", [RecoveryPolicy, CheckpointPolicy])
def test_no_number_is_true_or_text_and_no_switch_is_a_number_or_text(
    model: type[BaseModel],
) -> None:
    """Python counts with True, and text would be read: neither is what was meant."""
    for name, field in model.model_fields.items():
        default = field.default
        if isinstance(default, bool):
            wrong: list[object] = [1, "true", "yes"]
        elif default is None or isinstance(default, (int, float)):
            wrong = [True, False, "10", "yes"]
        else:
            continue
        for value in wrong:
            with pytest.raises(ValidationError) as caught:
                model.model_validate({name: value})
            assert name in str(caught.value)
            assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [True, "10", 1.5, 10.0])
@pytest.mark.parametrize("name", ["save_every", "keep_last", "keep_best", "auto_min_steps"])
def test_a_number_of_steps_or_checkpoints_is_a_whole_number(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match="valid integer"):
        CheckpointPolicy.model_validate({name: value})


@pytest.mark.parametrize("steps", [[True], ["10"], [2.0], [0], [-3]])
def test_steps_to_save_at_are_whole_numbers_above_zero(steps: list[Any]) -> None:
    with pytest.raises(ValidationError, match="save_at_steps"):
        CheckpointPolicy(save_at_steps=tuple(steps))


def test_the_numbers_of_numpy_are_numbers() -> None:
    policy = CheckpointPolicy.model_validate(
        {"save_every": np.int64(7), "save_at_steps": [np.int32(3)], "ttl_s": np.float64(7200)}
    )
    assert (policy.save_every, policy.save_at_steps, policy.ttl_s) == (7, (3,), 7200.0)
    assert type(policy.save_every) is int


def test_a_cap_below_the_first_delay_is_refused_with_both_values() -> None:
    with pytest.raises(ValidationError, match=r"max_backoff_s=2 is below backoff_s=5"):
        RecoveryPolicy(max_backoff_s=2.0)


def test_a_policy_cannot_be_changed_behind_a_running_supervisors_back() -> None:
    policy = RecoveryPolicy()
    with pytest.raises(ValidationError, match="frozen"):
        policy.max_attempts = 7  # type: ignore[misc]  # the very thing that must fail


def test_the_first_attempt_does_not_wait_and_later_ones_wait_twice_as_long_each() -> None:
    policy = RecoveryPolicy(backoff_s=5, max_backoff_s=60, backoff_jitter=0)
    assert [policy.backoff_before(n, 0.5) for n in range(1, 8)] == [0, 5, 10, 20, 40, 60, 60]


@given(
    attempt=st.integers(2, 10_000),
    random=st.floats(0, 1, exclude_max=True),
    backoff_s=st.floats(0, 1e6),
    more=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
)
def test_jitter_only_lengthens_and_never_by_more_than_its_share(
    attempt: int, random: float, backoff_s: float, more: float, jitter: float
) -> None:
    policy = RecoveryPolicy(
        backoff_s=backoff_s, max_backoff_s=backoff_s + more, backoff_jitter=jitter
    )
    plain = policy.model_copy(update={"backoff_jitter": 0.0}).backoff_before(attempt, random)
    delay = policy.backoff_before(attempt, random)
    assert backoff_s <= plain <= backoff_s + more
    assert plain <= delay <= plain * (1 + jitter)


@pytest.mark.parametrize(
    ("warn", "stall", "expected"),
    [
        (None, 900.0, 300.0),
        (60.0, 900.0, 60.0),
        (60.0, "off", 60.0),
        (None, "off", None),
        (None, None, 600.0),
        (60.0, None, 60.0),
        (2000.0, None, 1800.0),
    ],
)
def test_silence_is_warned_of_after_what_is_set_or_a_third_of_what_makes_it_a_fault(
    warn: float | None, stall: Any, expected: float | None
) -> None:
    policy = RecoveryPolicy(stall_warn_after_s=warn, stall_after_s=stall)
    assert policy.stall_warning_s(policy.stall_limit_s(None)) == expected


@pytest.mark.parametrize(
    ("given", "slow_s", "limit_s"),
    [
        (None, None, 1800.0),
        (None, 0.01, 300.0),
        (None, 15.0, 300.0),
        (None, 20.0, 400.0),
        (None, 89.0, 1780.0),
        (None, 3600.0, 1800.0),
        (7.0, None, 7.0),
        (7.0, 60.0, 7.0),
        (7200.0, 1.0, 7200.0),
        ("off", 1.0, None),
        ("off", None, None),
    ],
)
def test_silence_is_a_fault_after_a_multiple_of_slow_requests_unless_a_number_is_given(
    given: Any, slow_s: float | None, limit_s: float | None
) -> None:
    assert RecoveryPolicy(stall_after_s=given).stall_limit_s(slow_s) == limit_s


@pytest.mark.parametrize("given", [0, -1, True, math.inf, "never", "900"])
def test_a_limit_of_silence_that_is_no_number_of_seconds_is_refused(given: Any) -> None:
    with pytest.raises(ValidationError, match="stall_after_s"):
        RecoveryPolicy(stall_after_s=given)


def test_a_warning_of_silence_behind_the_fault_is_refused_and_one_at_the_same_time_is_not() -> None:
    with pytest.raises(ValidationError, match=r"stall_warn_after_s=61 is above stall_after_s=60"):
        RecoveryPolicy(stall_warn_after_s=61.0, stall_after_s=60.0)
    policy = RecoveryPolicy(stall_warn_after_s=60.0, stall_after_s=60.0)
    assert policy.stall_warning_s(policy.stall_limit_s(1.0)) == 60.0


def test_a_cap_equal_to_the_first_delay_is_allowed() -> None:
    assert RecoveryPolicy(backoff_s=5.0, max_backoff_s=5.0).backoff_before(9, 0.0) == 5.0


def _datum(tokens: int) -> types.Datum:
    return types.Datum(model_input=types.ModelInput.from_ints([1] * tokens), loss_fn_inputs={})


@pytest.mark.parametrize("parts", [(1,), (CANARY_TOKENS,), (CANARY_TOKENS - 1, 1)])
def test_a_canary_of_one_token_up_to_the_limit_is_allowed(parts: tuple[int, ...]) -> None:
    canary = tuple(_datum(tokens) for tokens in parts)
    assert RecoveryPolicy(canary=canary).canary == canary


@pytest.mark.parametrize("parts", [(), (0,), (CANARY_TOKENS + 1,), (CANARY_TOKENS, 1)])
def test_a_canary_with_no_token_or_one_too_many_is_refused_with_their_number(
    parts: tuple[int, ...],
) -> None:
    with pytest.raises(ValidationError, match=rf"canary has {sum(parts)} tokens: between 1 and"):
        RecoveryPolicy(canary=tuple(_datum(tokens) for tokens in parts))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("linear", [0, 5, 10, 15, 20, 20]), ("constant", [0, 5, 5, 5, 5, 5])],
)
def test_each_type_of_backoff_grows_as_it_says(kind: str, expected: list[float]) -> None:
    policy = RecoveryPolicy.model_validate(
        {"backoff_type": kind, "backoff_s": 5, "max_backoff_s": 20, "backoff_jitter": 0}
    )
    assert [policy.backoff_before(n, 0.5) for n in range(1, 7)] == expected


def test_the_delay_is_lengthened_by_the_random_share_of_the_jitter() -> None:
    policy = RecoveryPolicy(backoff_s=5, max_backoff_s=60, backoff_jitter=0.2)
    assert policy.backoff_before(3, 0.5) == pytest.approx(11.0)
