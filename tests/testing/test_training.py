"""The local server against the unmodified SDK: training, saving, resuming."""

from __future__ import annotations

from typing import Any

import pytest
import tinker
from loops import ADAM, batch
from sdk_loops import a_service, fresh, resumed, train
from tinker import types

from tinker_recovery.testing import LocalTinker

pytestmark = pytest.mark.usefixtures("local")


@pytest.fixture
def server(local: LocalTinker) -> LocalTinker:
    return local


async def test_losses_fall(service: tinker.ServiceClient) -> None:
    client = await fresh(service)
    for _ in range(20):
        await client.forward_backward(batch(0), "cross_entropy")
        await client.optim_step(ADAM)
    first = (await client.forward(batch(1), "cross_entropy")).metrics["loss:sum"]
    losses = [(await client.forward(batch(0), "cross_entropy")).metrics["loss:sum"]]
    assert losses[0] < first / 4


async def test_the_loss_is_the_weighted_sum_of_the_logprobs_returned(
    service: tinker.ServiceClient,
) -> None:
    client = await fresh(service)
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([1, 2, 300]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=[2, 300, 4], dtype="int64", shape=[3]),
            "weights": types.TensorData(data=[0.0, 1.0, 2.0], dtype="float32", shape=[3]),
        },
    )
    output = await client.forward([datum, *batch(0)], "cross_entropy")
    ours, other = (one["logprobs"].tolist() for one in output.loss_fn_outputs)
    assert (len(ours), len(other)) == (3, 8)
    expected = -(ours[1] + 2 * ours[2]) - sum(other)
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)


async def test_a_forward_alone_leaves_no_gradient(
    local: LocalTinker, service: tinker.ServiceClient
) -> None:
    with_it, without = await fresh(service), await fresh(service)
    await with_it.forward(batch(3), "cross_entropy")
    await train(with_it, 0, 2)
    await train(without, 0, 2)
    assert local.run_state(with_it.model_id) == local.run_state(without.model_id)


async def test_gradients_add_up_over_a_batch_in_several_chunks(
    local: LocalTinker, service: tinker.ServiceClient
) -> None:
    """More than 1024 data make two requests, and the SDK sends the first one last."""
    chunked, two_calls = await fresh(service), await fresh(service)
    data = [batch(step)[0] for step in range(1100)]
    output = await chunked.forward_backward(data, "cross_entropy")
    await chunked.optim_step(ADAM)
    await two_calls.forward_backward(data[:1024], "cross_entropy")
    await two_calls.forward_backward(data[1024:], "cross_entropy")
    await two_calls.optim_step(ADAM)
    assert len(output.loss_fn_outputs) == 1100
    assert local.stats.by_route["forward_backward"] == 4
    assert local.run_state(chunked.model_id) == local.run_state(two_calls.model_id)


async def test_the_same_requests_give_the_same_bits(
    local: LocalTinker, service: tinker.ServiceClient
) -> None:
    clients = [await fresh(service) for _ in range(3)]
    losses = [await train(client, 0, 12) for client in clients]
    assert losses[0] == losses[1] == losses[2]
    assert len({local.run_state(client.model_id) for client in clients}) == 1


async def test_without_a_seed_every_run_starts_with_other_weights(
    local: LocalTinker, service: tinker.ServiceClient
) -> None:
    clients = [await fresh(service, seed=None) for _ in range(2)]
    digests = {local.run_state(client.model_id).weights_digest for client in clients}
    assert len(digests) == 2


async def test_a_resume_with_the_optimizer_is_exact_over_20_steps(
    local: LocalTinker, service: tinker.ServiceClient
) -> None:
    client = await fresh(service)
    await train(client, 0, 5)
    path = (await client.save_state("five")).path
    losses = await train(client, 5, 25)
    again = await resumed(service, path, optimizer=True)
    assert await train(again, 5, 25) == losses
    assert local.run_state(again.model_id) == local.run_state(client.model_id)
    assert local.run_state(again.model_id).steps == 25


async def test_a_resume_of_the_weights_alone_differs_from_the_second_step_on(
    local: LocalTinker, service: tinker.ServiceClient
) -> None:
    client = await fresh(service)
    await train(client, 0, 5)
    path = (await client.save_state("five")).path
    saved = local.run_state(client.model_id)
    losses = await train(client, 5, 10)
    again = await resumed(service, path, optimizer=False)
    loaded = local.run_state(again.model_id)
    assert (loaded.steps, loaded.weights_digest) == (5, saved.weights_digest)
    assert loaded.optimizer_digest != saved.optimizer_digest
    resumed_losses = await train(again, 5, 10)
    assert resumed_losses[0] == losses[0]
    assert all(one != two for one, two in zip(resumed_losses[1:], losses[1:], strict=True))


async def test_a_save_queued_behind_a_step_holds_that_step(
    local: LocalTinker, service: tinker.ServiceClient
) -> None:
    client = await fresh(service)
    pending: list[tinker.APIFuture[Any]] = []
    for step in range(6):
        pending.append(client.forward_backward(batch(step), "cross_entropy"))
        pending.append(client.optim_step(ADAM))
        if step == 2:
            saving = client.save_state("three")
    for one in pending:
        await one
    again = await resumed(service, (await saving).path, optimizer=True)
    assert local.run_state(again.model_id).steps == 3


async def test_a_batch_the_model_cannot_take_fails_as_a_user_error(
    service: tinker.ServiceClient,
) -> None:
    client = await fresh(service)
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([1, 2, 3]),
        loss_fn_inputs={"target_tokens": types.TensorData(data=[2, 3], dtype="int64", shape=[2])},
    )
    with pytest.raises(tinker.RequestFailedError, match="3 tokens, 2 targets") as caught:
        await client.forward_backward([datum], "cross_entropy")
    assert caught.value.category == "user"
    await train(client, 0, 1)


async def test_a_result_that_takes_long_is_polled_again() -> None:
    async with LocalTinker(long_poll_s=0.01, step_s=0.3) as server, a_service(server) as service:
        client = await fresh(service)
        await train(client, 0, 1)
        assert server.stats.by_route["retrieve_future"] >= 3 + 3
