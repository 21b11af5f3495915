"""What is kept as text comes back equal, and of the same types."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from tinker import types

from tinker_recovery import UsageError
from tinker_recovery.checkpoints.values import decode_value, encode_value

SEQUENCE = types.SampledSequence(
    stop_reason="stop",
    sequence_id="one",
    tokens_np=np.array([3, 1, 4], dtype=np.int32),
    logprobs_np=np.array([-0.1, -1 / 3, -math.inf], dtype=np.float32),
)
ANSWER = types.SampleResponse(
    sequences=[SEQUENCE], prompt_logprobs_np=np.array([math.nan, -2.0], dtype=np.float32)
)
DATUM = types.Datum(
    model_input=types.ModelInput.from_ints([1, 2, 3]),
    loss_fn_inputs={
        "target_tokens": types.TensorData(data=[2, 3, 4], dtype="int64", shape=[3]),
        "advantages": types.TensorData(data=[0.1, 0.2, 0.3], dtype="float32", shape=[3]),
    },
)


def again(value: object) -> Any:
    return decode_value(encode_value(value, "it"))


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    plain | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.just("~"), inner)
    ),
)


@given(values)
def test_what_comes_back_is_what_was_kept(value: object) -> None:
    assert repr(again(value)) == repr(value)


def test_numbers_that_json_lacks_come_back() -> None:
    assert repr(again([math.nan, math.inf, -0.0])) == "[nan, inf, -0.0]"


def test_a_sample_comes_back_to_the_bit() -> None:
    found = again([(ANSWER, "group")])
    assert type(found[0]) is tuple
    (answer, _) = found[0]
    assert type(answer) is types.SampleResponse
    assert repr(answer.prompt_logprobs) == repr(ANSWER.prompt_logprobs)
    sequence = answer.sequences[0]
    assert (sequence.tokens, sequence.logprobs) == (SEQUENCE.tokens, SEQUENCE.logprobs)
    assert sequence.tokens_np is not None
    assert sequence.tokens_np.dtype == np.int32
    assert (sequence.stop_reason, sequence.sequence_id) == ("stop", "one")


def test_a_batch_comes_back_and_can_be_trained_on() -> None:
    found = again(DATUM)
    assert type(found) is types.Datum
    assert found.model_input == DATUM.model_input
    assert found.model_input.to_ints() == [1, 2, 3]
    for name, tensor in DATUM.loss_fn_inputs.items():
        other = found.loss_fn_inputs[name]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
        assert (other.to_numpy() == tensor.to_numpy()).all()
    assert again(types.AdamParams(learning_rate=0.5)) == types.AdamParams(learning_rate=0.5)


class Mine(BaseModel):
    """A model of the user's, by the name of one of the SDK's below."""

    rank: int = 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"group": [1, {2}]}, r"it\['group'\]\[1\] is a builtins\.set; allowed are None"),
        ({1: "one"}, "it has the key 1, a int: use string keys"),
        ([Mine()], r"it\[0\] is a \S*\.Mine"),
        (np.array(["text"]), r"it is a numpy\.ndarray"),
        (tinker.ServiceClient, r"it is a "),
        (np.float32(1), r"it is a numpy\.float32"),
    ],
)
def test_what_cannot_be_kept_is_named_by_key_and_type(value: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        encode_value(value, "it")


def test_what_contains_itself_is_refused() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(UsageError, match="contains itself"):
        encode_value(value, "it")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"~":"spell"}',
        '{"~":"dataclass","type":"Datum","of":{}}',
        '{"~":[]}',
        '{"~":"model","type":"ServiceClient","of":{}}',
        '{"~":"array"}',
    ],
)
def test_text_of_another_kind_is_no_value(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any message
        decode_value(text)
