"""Losses that a client computes itself, and several targets for each token, at the local server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tinker
from custom_losses import do_without_pytorch, squared
from loops import ADAM, batch
from sdk_loops import a_service, fresh
from tinker import types

from tinker_recovery.testing import FaultRule, LocalTinker
from tinker_recovery.testing._model import BigramLora, Datum, Floats

LENGTH, TARGETS = 5, 3
TOKENS = [3, 4, 9, 2, 30]


@pytest.fixture(autouse=True)
def _without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    do_without_pytorch(monkeypatch)


def weighted(weights: Any) -> types.Datum:
    """The batch of step 0, with these weights."""
    (datum,) = batch(0)
    inputs = {**datum.loss_fn_inputs, "weights": types.TensorData.from_numpy(weights)}
    return types.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)


async def test_a_loss_of_the_clients_own_trains_as_its_gradient_says() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        client, other = await fresh(service), await fresh(service)
        # The optimizer step is submitted before the loss is known, as the SDK lets a loop do.
        custom: Any = client.forward_backward_custom(batch(0), squared)
        update = client.optim_step(ADAM)
        output = await custom
        await update
        plain = (await other.forward(batch(0), "cross_entropy")).loss_fn_outputs[0]["logprobs"]
        logprobs = np.array(plain.data, np.float32)
        await other.forward_backward([weighted(-2 * logprobs)], "cross_entropy")
        await other.optim_step(ADAM)
        assert output.metrics["squared"] == pytest.approx((logprobs**2).sum())
        assert output.metrics["loss:sum"] == output.metrics["squared"]
        assert local.run_state(client.model_id) == local.run_state(other.model_id)
        assert local.run_state(client.model_id).steps == 1


async def test_a_fault_in_the_middle_of_a_custom_loss_reaches_the_client() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        local.inject(FaultRule("fail", request="forward_backward"))
        with pytest.raises(tinker.RequestFailedError, match="injected"):
            await client.forward_backward_custom(batch(0), squared)


def several(weights: Floats, *, sparse: bool = False) -> types.Datum:
    """Three targets for each token; those of weight 0 may be left out of a sparse tensor."""
    targets = np.array([[4, 5, 6], [9, 8, 7], [2, 3, 1], [30, 31, 32], [7, 8, 9]], np.int64)
    targets[weights == 0] = 0
    found: dict[str, Any] = {"target_tokens": targets, "weights": weights}
    if not sparse:
        inputs = {name: types.TensorData.from_numpy(value) for name, value in found.items()}
    else:
        rows, columns = np.nonzero(weights)
        crow = [int((rows < row).sum()) for row in range(LENGTH + 1)]
        inputs = {
            name: types.TensorData(
                data=value[rows, columns],
                dtype="int64" if name == "target_tokens" else "float32",
                shape=[LENGTH, TARGETS],
                sparse_crow_indices=crow,
                sparse_col_indices=columns.tolist(),
            )
            for name, value in found.items()
        }
    return types.Datum(model_input=types.ModelInput.from_ints(TOKENS), loss_fn_inputs=inputs)


WEIGHTS = np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0, 0], [0.25, 0.25, 0.5], [0, 2, 0]], np.float32)


async def test_a_token_may_have_several_targets_dense_or_sparse() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        states = []
        for datum in (several(WEIGHTS), several(WEIGHTS, sparse=True)):
            client = await fresh(service)
            output = await client.forward_backward([datum, *batch(0)], "cross_entropy")
            await client.optim_step(ADAM)
            states.append(local.run_state(client.model_id))
            first, second = (one["logprobs"] for one in output.loss_fn_outputs)
            assert first.shape == [LENGTH, TARGETS]
            assert second.shape == [8]
            logprobs = np.array(first.data).reshape(LENGTH, TARGETS)
            expected = -(logprobs * WEIGHTS).sum() - np.sum(second.data)
            assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)
        assert states[0] == states[1]


async def test_targets_and_weights_of_other_shapes_are_refused() -> None:
    datum = several(WEIGHTS)
    inputs = {**datum.loss_fn_inputs, "weights": types.TensorData.from_numpy(WEIGHTS[:, :2])}
    wrong = types.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        with pytest.raises(tinker.RequestFailedError, match=r"targets of shape \[5, 3\] and weigh"):
            await client.forward([wrong], "cross_entropy")


def test_the_gradient_of_several_targets_is_the_numeric_one() -> None:
    model = BigramLora("base", rank=4, seed=3)
    model.perturb()
    tokens = np.array(TOKENS, np.int64)
    targets = np.array([[4, 5], [9, 9], [2, 3], [30, 31], [7, 8]], np.int64)
    weights = np.array([[0.5, 0.5], [1, 2], [0, 0], [0.25, 0.5], [0, 2]], np.float32)
    datum = Datum(tokens, targets, weights)
    model.forward([datum], backward=True)
    gradient = model._gradients["lora_b"]
    small = 1e-2
    for row, column in ((0, 4), (1, 9), (2, 31), (3, 0)):
        losses = []
        for sign in (1, -1):
            model.weights["lora_b"][row, column] += sign * small
            losses.append(model.forward([datum], backward=False)[0])
            model.weights["lora_b"][row, column] -= sign * small
        numeric = (losses[0] - losses[1]) / (2 * small)
        assert gradient[row, column] == pytest.approx(numeric, abs=2e-3)


async def test_a_sparse_tensor_with_a_place_that_is_not_there_is_the_users_error() -> None:
    datum = several(WEIGHTS, sparse=True)
    targets = datum.loss_fn_inputs["target_tokens"]
    outside = types.TensorData(
        data=targets.data,
        dtype="int64",
        shape=[LENGTH, TARGETS],
        sparse_crow_indices=targets.sparse_crow_indices,
        sparse_col_indices=[TARGETS] * len(targets.data),
    )
    inputs = {**datum.loss_fn_inputs, "target_tokens": outside}
    wrong = types.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        with pytest.raises(tinker.RequestFailedError, match="sparse") as caught:
            await client.forward([wrong], "cross_entropy")
        assert caught.value.category == "user"
