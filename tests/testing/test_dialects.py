"""Services that differ: what each dialect does on the wire, seen through the real SDK."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from loops import ADAM, batch
from sdk_loops import a_service, fresh, resumed, train
from tinker import types
from wire import NO_TLS, Wire, http, wired

from tinker_recovery.testing import Dialect, LocalTinker, LocalTinkerProcess, serve

NOTE = {"mine": "yes"}


async def the_one_listed(local: LocalTinker, run_id: str) -> types.Checkpoint:
    """A run's only checkpoint, as the SDK's types read the listing."""
    async with http(local.base_url, local.api_key) as client:
        reply = await client.get(f"training_runs/{run_id}/checkpoints")
        (found,) = types.CheckpointsListResponse.model_validate(reply.json()).checkpoints
        return found


async def saved(dialect: Dialect) -> types.Checkpoint:
    """What is listed of a save with metadata."""
    async with LocalTinker(dialect=dialect) as local, a_service(local) as service:
        client = await fresh(service)
        await client.save_state("one", user_metadata=NOTE)
        return await the_one_listed(local, client.model_id)


async def test_hosted_keeps_metadata_and_lists_sizes() -> None:
    found = await saved("hosted")
    assert found.user_metadata == NOTE
    assert found.size_bytes


async def test_one_that_forgets_metadata_saves_well_and_lists_none() -> None:
    assert (await saved("forgets_metadata")).user_metadata is None


async def test_one_that_refuses_metadata_answers_422_and_that_client_is_unusable() -> None:
    async with LocalTinker(dialect="refuses_metadata") as local, a_service(local) as service:
        client = await fresh(service)
        await train(client, 0, 1)
        with pytest.raises(tinker.UnprocessableEntityError, match="user_metadata"):
            await client.save_state("one", user_metadata=NOTE)
        with pytest.raises(tinker.RequestFailedError, match="Sequence conflict: expected 3, got 4"):
            await client.optim_step(ADAM)
        again = await fresh(service)
        await again.save_state("one")
        assert (await the_one_listed(local, again.model_id)).checkpoint_id == "weights/one"


async def test_one_that_rolls_back_is_at_its_last_checkpoint_after_a_kill(tmp_path: Path) -> None:
    async with LocalTinkerProcess(tmp_path, dialect="rolls_back") as server:
        async with http(server.base_url, server.api_key) as client:
            wire = Wire(client)
            wire.session = (await wire.post("create_session", {"tags": []}))["session_id"]
            run = await wire.create()
            await wire.result(await wire.optim_step(run, 1))
            await wire.result(await wire.save(run, 2, "one"))
            await wire.result(await wire.optim_step(run, 3))
        await server.restart()
        state = await server.run_state(run)
        assert (state.steps, state.corrupted) == (1, False)


@pytest.mark.parametrize("rollback", [None, False])
async def test_one_that_rolls_back_does_after_an_outage_too_unless_that_says_otherwise(
    rollback: bool | None,  # noqa: FBT001 - pytest's parameter
) -> None:
    async with LocalTinker(dialect="rolls_back") as local, a_service(local) as service:
        client = await fresh(service)
        await train(client, 0, 2)
        await client.save_state("two")
        await train(client, 2, 4)
        local.begin_outage(status=503, rollback=rollback)
        local.end_outage()
        lost = 2 if rollback is None else 0
        state = local.run_state(client.model_id)
        assert (state.steps, state.corrupted) == (4 - lost, False)
        await train(client, 4, 5)
        assert local.run_state(client.model_id).steps == 5 - lost


async def losses(local: LocalTinker) -> list[float]:
    """The losses of a fresh run's first two steps."""
    async with a_service(local) as service:
        return await train(await fresh(service), 0, 2)


async def test_one_that_ignores_the_seed_answers_the_first_forward_alike_and_then_differs() -> None:
    async with LocalTinker(dialect="ignores_seed") as local:
        first, second = await losses(local), await losses(local)
        assert first[0] == second[0]
        assert first[1] != second[1]
    async with LocalTinker(dialect="ignores_seed") as local:
        assert await losses(local) == first, "the first run of such a service is repeatable"
    async with LocalTinker() as local:
        assert await losses(local) == await losses(local)


async def test_one_that_draws_seeds_draws_others_after_a_restart(tmp_path: Path) -> None:
    async with LocalTinker(tmp_path, dialect="ignores_seed") as local:
        before = await losses(local)
    async with LocalTinker(tmp_path, dialect="ignores_seed") as local:
        assert await losses(local) != before


async def ended(**options: Any) -> tuple[list[float], list[float], str]:
    """Two answers to the same batch, and the weights that six steps end with."""
    async with LocalTinker(**options) as local, a_service(local) as service:
        client = await fresh(service)
        answers = []
        for _ in range(2):
            output = await client.forward(batch(0), "cross_entropy")
            answers.append(output.loss_fn_outputs[0]["logprobs"].data)
        await train(client, 0, 6)
        return *answers, local.run_state(client.model_id).weights_digest


async def test_a_noisy_one_answers_a_little_differently_each_time_and_trains_exactly() -> None:
    one, other, weights = await ended(dialect="noisy")
    assert 0 < max(abs(a - b) for a, b in zip(one, other, strict=True)) < 0.01
    assert weights == (await ended())[2]
    assert (one, other, weights) == await ended(dialect="noisy"), "drawn from a seeded generator"
    assert (one, other) != (await ended(dialect="noisy", chance=1))[:2]


async def test_noise_on_gradients_is_apart_from_noise_on_answers() -> None:
    one, other, weights = await ended(gradient_noise=1e-3)
    assert one == other
    assert weights != (await ended())[2]
    assert weights == (await ended(gradient_noise=1e-3))[2]


async def test_a_bare_one_answers_404_to_finish_search_and_export_and_lists_no_sizes() -> None:
    async with LocalTinker(dialect="bare") as local, http(local.base_url, local.api_key) as client:
        wire = Wire(client)
        session = (await wire.post("create_session", {"tags": []}))["session_id"]
        for path in (f"sessions/{session}/finish", "sessions/search", "save_weights_external"):
            assert await wire.post(path, {}, status=404) == {"detail": "Not Found"}
        urls = "training_runs/r/checkpoints/weights/c/external_weights_urls"
        assert (await client.get(urls)).status_code == 404
        assert local.sessions() == {session: "active"}
        service = local.service()
        training = await fresh(service)
        await training.save_state("one", user_metadata=NOTE)
        found = await the_one_listed(local, training.model_id)
        assert (found.size_bytes, found.user_metadata) == (None, NOTE)
        with pytest.raises(tinker.NotFoundError):
            await service.close("success")


def datum(tokens: list[int], *, weights: bool = True) -> types.Datum:
    """One sequence."""
    inputs = {"target_tokens": types.TensorData(data=tokens[1:], dtype="int64")}
    if weights:
        inputs["weights"] = types.TensorData(data=[1.0] * (len(tokens) - 1), dtype="float32")
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


async def test_a_strict_one_demands_weights_and_tokens_below_256() -> None:
    async with LocalTinker(dialect="strict") as local, a_service(local) as service:
        client = await fresh(service)
        for wrong, why in (
            (datum([1, 2, 3], weights=False), "no weights"),
            (datum([1, 256, 3]), "vocabulary of 256"),
            (datum([1, 2, 256]), "vocabulary of 256"),
        ):
            with pytest.raises(tinker.RequestFailedError, match=why) as failed:
                await client.forward_backward([wrong], "cross_entropy")
            assert failed.value.category == types.RequestErrorCategory.User
        await client.forward_backward([datum([1, 255, 255])], "cross_entropy")


async def test_one_whose_failures_are_all_the_servers_own_says_so_of_a_damaged_file_each_time() -> (
    None
):
    async with LocalTinker(dialect="server_category") as local, a_service(local) as service:
        client = await fresh(service)
        path = (await client.save_state("one")).path
        local.damage(path, "header_flip")
        for _ in range(2):
            with pytest.raises(tinker.RequestFailedError, match="deserializing header") as failed:
                await resumed(service, path)
            assert failed.value.category == types.RequestErrorCategory.Server
            assert local.run_state(local.runs()[0]).corrupted
        with pytest.raises(tinker.RequestFailedError, match="no target_tokens") as failed:
            await client.forward_backward(
                [types.Datum(model_input=types.ModelInput.from_ints([1]), loss_fn_inputs={})],
                "cross_entropy",
            )
        assert failed.value.category == types.RequestErrorCategory.Server


@pytest.mark.parametrize(
    ("dialect", "says", "category"),
    [("hosted", "cannot load", "user"), ("server_category", r"Adapter .* not found", "server")],
)
async def test_a_missing_checkpoint_fails_its_load_with_the_category_of_the_dialect(
    dialect: Any, says: str, category: str
) -> None:
    async with LocalTinker(dialect=dialect) as local, wired(local) as wire:
        failed = await wire.load(0, "tinker://r:train:0/weights/gone")
    assert failed["category"] == category
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(failed["error"])


async def test_every_reply_carries_the_services_own_time() -> None:
    now = [1_700_000_000.0]
    async with (
        LocalTinker(wall=lambda: now[0]) as local,
        httpx.AsyncClient(base_url=local.base_url, verify=NO_TLS) as client,
    ):
        for path, status in (("/api/v1/healthz", 200), ("/api/v1/checkpoints", 401), ("/no", 404)):
            now[0] += 3600
            reply = await client.get(path)
            assert reply.status_code == status
            assert parsedate_to_datetime(reply.headers["date"]).timestamp() == now[0]


async def test_an_entry_can_be_listed_oddly() -> None:
    async with LocalTinker() as local, wired(local) as wire:
        run = await wire.create()
        for seq_id, name in enumerate("abc", 1):
            await wire.result(await wire.save(run, seq_id, name))
        local.list_as(f"tinker://{run}/weights/a", checkpoint_type="delta")
        local.list_as(f"tinker://{run}/weights/b", time=None)
        odd, timeless, plain = (await wire.get(f"training_runs/{run}/checkpoints"))["checkpoints"]
        assert odd["checkpoint_type"] == "delta"
        assert "time" not in timeless
        assert plain["checkpoint_type"] == "training"
        assert plain["time"]


def test_what_is_no_dialect_or_out_of_its_range_is_refused_with_what_is_allowed() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"dialect": "klingon"}, "dialect='klingon' is not allowed: hosted, forgets_metadata"),
        ({"metadata": "lost"}, "metadata='lost' is not allowed: kept, forgotten, refused"),
        ({"answer_noise": -1.0}, "answer_noise=-1.0 is not allowed: 0 or more"),
    ]
    for options, why in wrong:
        for make in (LocalTinker, serve):
            with pytest.raises(ValueError, match=why):
                make(**options)


async def test_an_option_given_with_a_dialect_counts_more() -> None:
    one, other, _ = await ended(dialect="noisy", answer_noise=0.0)
    assert one == other
