"""The losses of reinforcement learning at the local server."""

from __future__ import annotations

import numpy as np
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st
from sdk_loops import a_service, fresh
from tinker import types

from tinker_recovery.testing import LocalTinker
from tinker_recovery.testing._losses import OFFERED, loss_of
from tinker_recovery.testing._model import BigramLora, Datum

RL = [name for name in OFFERED if name not in ("cross_entropy", "gspo")]
LENGTH = 6


def floats(values: list[float]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, np.float32)


def datum(**inputs: list[float]) -> types.Datum:
    tensors = {
        name: types.TensorData(data=values, dtype="float32", shape=[len(values)])
        for name, values in inputs.items()
    }
    targets = types.TensorData(data=[4, 9, 2, 30, 7, 1], dtype="int64", shape=[LENGTH])
    return types.Datum(
        model_input=types.ModelInput.from_ints([3, 4, 9, 2, 30, 7]),
        loss_fn_inputs={"target_tokens": targets, **tensors},
    )


@pytest.mark.parametrize("name", RL)
@given(
    apart=st.lists(st.floats(-1, 1), min_size=LENGTH, max_size=LENGTH),
    advantages=st.lists(st.floats(-2, 2), min_size=LENGTH, max_size=LENGTH),
    seed=st.integers(0, 100),
)
def test_its_gradient_is_the_numeric_one(
    name: str, apart: list[float], advantages: list[float], seed: int
) -> None:
    model = BigramLora("base", rank=4, seed=seed)
    model.perturb()
    tokens = np.array([3, 4, 9, 2, 30, 7], np.int64)
    targets = np.array([4, 9, 2, 30, 7, 1], np.int64)
    plain = Datum(tokens, targets, np.ones(LENGTH, np.float32))
    now = model.forward([plain], backward=False)[1][0]
    sampled = (now - floats(apart)).astype(np.float32)
    loss = loss_of(name, {}, sampled, floats(advantages))
    slopes = loss(now)[1]
    small = 1e-2
    for place in range(LENGTH):
        # Not where the clipping begins: there the gradient has two sides.
        edges = np.abs(np.exp(apart[place]) - np.array([0.8, 1.2]))
        if edges.min() < 2 * small:
            continue
        moved = np.zeros(LENGTH, np.float32)
        moved[place] = small
        if name == "cispo":
            # No gradient goes through the clipped ratio.
            ratio = np.clip(np.exp(apart[place]), 0.0, 4.0)
            assert slopes[place] == pytest.approx(ratio * advantages[place], abs=1e-4)
        else:
            numeric = (loss(now - moved)[0] - loss(now + moved)[0]) / (2 * small)
            assert slopes[place] == pytest.approx(numeric, abs=5e-3)
    # As a weighted cross-entropy with these weights, which is linear in the logprobs.
    one, two = (BigramLora("base", rank=4, seed=seed) for _ in range(2))
    for each in (one, two):
        each.perturb()
    one.forward([Datum(tokens, targets, plain.weights, loss)], backward=True)
    two.forward([Datum(tokens, targets, slopes)], backward=True)
    for key, gradient in one._gradients.items():
        np.testing.assert_array_equal(gradient, two._gradients[key])


@pytest.mark.parametrize("name", RL)
async def test_the_sdk_trains_with_it(name: types.LossFnType) -> None:
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        one = datum(logprobs=[-4.0] * LENGTH, advantages=[1.0] * LENGTH)
        adam = types.AdamParams(learning_rate=1e-2)
        first = await client.forward_backward([one], name)
        await client.optim_step(adam)
        second = await client.forward([one], name)
        before, after = (
            np.array(reply.loss_fn_outputs[0]["logprobs"].data).sum() for reply in (first, second)
        )
        assert after > before
        assert np.isfinite(first.metrics["loss:sum"])


async def test_the_clipping_is_that_of_the_config_and_a_wrong_setting_is_refused() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        one = datum(logprobs=[-9.0] * LENGTH, advantages=[1.0] * LENGTH)
        reply = await client.forward([one], "ppo", {"clip_high_threshold": 1.5})
        assert reply.metrics["loss:sum"] == pytest.approx(-1.5 * LENGTH)
        with pytest.raises(tinker.RequestFailedError, match=r"loss_fn_config\['beta'\]"):
            await client.forward([one], "ppo", {"beta": 1.0})
        with pytest.raises(tinker.RequestFailedError, match="has no advantages"):
            await client.forward([datum(logprobs=[0.0] * LENGTH)], "ppo")
        with pytest.raises(tinker.RequestFailedError, match="'stable_reinforce' is not offered"):
            await client.forward([one], "stable_reinforce")


def test_what_is_not_configured_is_as_the_service_documents_it() -> None:
    now, gain = floats([0.0]), floats([1.0])
    likelier, rarer = now - 9, now + 9  # than when it was sampled
    assert loss_of("ppo", {}, likelier, gain)(now)[0] == pytest.approx(-1.2)
    assert loss_of("ppo", {}, rarer, -gain)(now)[0] == pytest.approx(0.8)
    # Clipped above only.
    assert loss_of("cispo", {}, likelier, gain)(now)[1] == pytest.approx(4.0)
    assert loss_of("cispo", {}, rarer, gain)(now)[1] == pytest.approx(np.exp(-9))
    assert loss_of("dro", {}, now - 2, gain)(now)[0] == pytest.approx(0.05 / 2 * 4)


async def test_an_input_that_a_loss_does_not_take_is_refused_by_name() -> None:
    given = datum(logprobs=[-1.0] * LENGTH, advantages=[1.0] * LENGTH, clip_low=[0.5] * LENGTH)
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        with pytest.raises(tinker.RequestFailedError, match="datum 0 has clip_low, which ppo"):
            await client.forward_backward([given], "ppo")


GSPO = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}


async def test_gspo_clips_the_ratio_of_the_whole_sequence() -> None:
    """The geometric mean of what the mask marks; each token has its value and its own gradient."""
    mask = [0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    advantages = [1.0, 1.0, -1.0, 2.0, 0.0, 1.0]
    async with LocalTinker() as local, a_service(local) as service:
        client, other = await fresh(service), await fresh(service)
        plain = datum(logprobs=[0.0] * LENGTH, advantages=[0.0] * LENGTH)
        now = (await client.forward([plain], "ppo")).loss_fn_outputs[0]["logprobs"].data
        for apart, ratio in (([0.3, 0.0, 0.1, 0.0, 9.0, 0.1], np.exp(0.05)), ([1.0] * 6, None)):
            sampled = [one - far for one, far in zip(now, apart, strict=True)]
            one = datum(logprobs=sampled, advantages=advantages, sequence_ratio_mask=mask)
            output = await client.forward_backward([one], "gspo", GSPO)
            s = np.exp(1.0) if ratio is None else ratio
            gains = np.minimum(s * floats(advantages), np.clip(s, 0.9, 1.1) * floats(advantages))
            assert output.metrics["loss:sum"] == pytest.approx(-gains.sum(), rel=1e-4)
            # As a cross-entropy with the gradients as weights: 0 where the clipped one is less.
            slopes = gains if ratio is not None else np.where(floats(advantages) > 0, 0, gains)
            await other.forward_backward([datum(weights=slopes.tolist())], "cross_entropy")
        for each in (client, other):
            await each.optim_step(types.AdamParams(learning_rate=1e-2))
        after = [
            (await each.forward([plain], "ppo")).loss_fn_outputs[0]["logprobs"].data
            for each in (client, other)
        ]
        np.testing.assert_allclose(after[0], after[1], atol=1e-3)
        assert after[0] != now


async def test_gspo_without_its_mask_or_its_thresholds_is_refused() -> None:
    rest = {"logprobs": [0.0] * LENGTH, "advantages": [1.0] * LENGTH}
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        with pytest.raises(tinker.RequestFailedError, match="has no sequence_ratio_mask"):
            await client.forward([datum(**rest)], "gspo", GSPO)
        marked = datum(**rest, sequence_ratio_mask=[1.0] * LENGTH)
        with pytest.raises(tinker.RequestFailedError, match=r"'gspo' needs .*clip_low_threshold"):
            await client.forward([marked], "gspo")
        empty = datum(**rest, sequence_ratio_mask=[0.0] * LENGTH)
        with pytest.raises(tinker.RequestFailedError, match="sequence_ratio_mask marks no token"):
            await client.forward([empty], "gspo", GSPO)
        with pytest.raises(tinker.RequestFailedError, match="sequence_ratio_mask, which ppo"):
            await client.forward([marked], "ppo")
