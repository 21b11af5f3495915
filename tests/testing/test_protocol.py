"""The protocol's rules, checked on the wire."""

from __future__ import annotations

import time

import anyio.to_thread
import pytest
import tinker
import zstandard
from loops import bare_run
from tinker.lib.public_interfaces.rest_client import RestClient
from tinker.proto import tinker_public_pb2 as pb
from wire import Wire, http

from tinker_recovery.testing import LocalTinker


@pytest.fixture
def server(local: LocalTinker) -> LocalTinker:
    return local


async def test_requests_are_executed_in_the_order_of_their_seq_ids(
    local: LocalTinker, wire: Wire
) -> None:
    one, other = await wire.create(0), await wire.create(1)
    for seq_id in (1, 3):
        await wire.forward_backward(one, seq_id, [seq_id, 2, 3])
        await wire.optim_step(one, seq_id + 1)
    late = await wire.optim_step(other, 4)
    await wire.forward_backward(other, 3, [3, 2, 3])
    await wire.optim_step(other, 2)
    assert local.run_state(other).steps == 0
    await wire.forward_backward(other, 1, [1, 2, 3])
    assert await wire.result(late) == {"metrics": {}}
    assert local.run_state(one) == local.run_state(other)


async def test_a_request_sent_twice_is_executed_once(local: LocalTinker, wire: Wire) -> None:
    run = await wire.create()
    first = await wire.optim_step(run, 1)
    assert await wire.optim_step(run, 1) == first
    await wire.result(first)
    assert await wire.optim_step(run, 1) == first
    saved = await wire.save(run, 2, "s")
    await wire.result(saved)
    assert await wire.save(run, 2, "s") == saved
    assert local.run_state(run).steps == 1


async def test_a_run_created_twice_by_a_retry_is_one_run(local: LocalTinker, wire: Wire) -> None:
    run = await wire.create(0)
    await wire.result(await wire.optim_step(run, 1))
    assert await wire.create(0) == run
    assert local.run_state(run).steps == 1


@pytest.mark.parametrize("seq_id", [0, -1])
async def test_a_seq_id_that_can_never_come_is_refused(wire: Wire, seq_id: int) -> None:
    run = await wire.create()
    body = {"model_id": run, "seq_id": seq_id, "adam_params": {}}
    await wire.post("optim_step", body, status=400)


async def test_a_run_that_does_not_exist_is_not_found(wire: Wire) -> None:
    await wire.post("get_info", {"model_id": "unknown"}, status=404)
    body = {"model_id": "unknown", "seq_id": 1, "adam_params": {}}
    await wire.post("optim_step", body, status=404)
    await wire.post("retrieve_future", {"request_id": "unknown"}, status=404)


async def test_a_body_that_is_no_protobuf_is_a_bad_request_with_a_length(wire: Wire) -> None:
    reply = await wire.http.post("forward_backward", content=b"\xff\xff\xff")
    assert reply.status_code == 400
    assert int(reply.headers["content-length"]) > 0


async def test_a_compressed_batch_is_read(wire: Wire) -> None:
    run = await wire.create()

    message = pb.ForwardBackwardRequest(model_id=run, seq_id=1, loss_fn="cross_entropy")
    content = zstandard.ZstdCompressor().compress(message.SerializeToString())
    reply = await wire.http.post(
        "forward_backward", content=content, headers={"Content-Encoding": "zstd"}
    )
    assert reply.status_code == 200
    done = await wire.http.post("retrieve_future", json=reply.json())
    assert done.headers["content-type"] == "application/x-protobuf"


async def test_a_finished_session_takes_no_more_requests(local: LocalTinker, wire: Wire) -> None:
    run = await wire.create()
    done = await wire.optim_step(run, 1)
    await wire.post("session_heartbeat", {"session_id": wire.session})
    await wire.post(f"sessions/{wire.session}/finish", {"reason": {"type": "errored"}})
    await wire.post(f"sessions/{wire.session}/finish", {"reason": {"type": "success"}})
    assert local.sessions()[wire.session] == "errored"
    await wire.post("session_heartbeat", {"session_id": wire.session}, status=410)
    body = {"model_id": run, "seq_id": 2, "adam_params": {}}
    await wire.post("optim_step", body, status=410)
    again = {"session_id": wire.session, "model_seq_id": 5, "base_model": "b"}
    await wire.post("create_model", again, status=410)
    assert await wire.result(done) == {"metrics": {}}


@pytest.mark.parametrize(("limit", "sizes"), [(2, [2, 2, 1]), (5, [5]), (100, [5])])
async def test_runs_come_in_pages_newest_first(wire: Wire, limit: int, sizes: list[int]) -> None:
    made = [await wire.create(number) for number in range(5)]
    found: list[str] = []
    pages = []
    while len(found) < 5:
        page = await wire.get("training_runs", limit=limit, offset=len(found))
        assert page["cursor"] == {"limit": limit, "offset": len(found), "total_count": 5}
        pages.append(len(page["training_runs"]))
        found += [run["training_run_id"] for run in page["training_runs"]]
    assert pages == sizes
    assert found == made[::-1]
    assert (await wire.get("training_runs", offset=5))["training_runs"] == []


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": -1}, {"offset": -1}])
async def test_a_page_out_of_range_is_refused(wire: Wire, params: dict[str, int]) -> None:
    reply = await wire.http.get("training_runs", params=params)
    assert reply.status_code == 400


async def test_a_wrong_key_is_refused(local: LocalTinker) -> None:
    for key in ("tml-another", "", "\u00fc"):
        async with http(local.base_url, "") as client:
            headers = {b"X-API-Key": key.encode()}
            reply = await client.get("training_runs", headers=headers)
            assert reply.status_code == 401
            assert (await client.get("healthz", headers=headers)).json() == {"status": "ok"}


async def test_the_sdk_says_that_its_key_is_wrong(local: LocalTinker) -> None:
    with pytest.raises(tinker.AuthenticationError):
        await anyio.to_thread.run_sync(
            lambda: RestClient(base_url=local.base_url, api_key="tml-another")
        )


async def test_where_a_token_is_asked_for_the_sdk_trains_with_one() -> None:
    async with LocalTinker(jwt=True) as server:
        run = await bare_run(server.service(), steps=2)
        assert server.run_state(run).steps == 2
        assert server.stats.by_route["token"] >= 1


async def test_where_a_token_is_asked_for_the_bare_key_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with LocalTinker(jwt=True) as server, http(server.base_url, server.api_key) as client:
        refused = await client.get("training_runs")
        assert refused.status_code == 401
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]
        token = (await client.post("auth/token", json={})).json()["jwt"]
        assert (await client.get("training_runs", headers={"X-API-Key": token})).is_success
        forged = await client.get("training_runs", headers={"X-API-Key": token[:-2] + "xx"})
        assert forged.status_code == 401
        later = time.time() + 3601
        monkeypatch.setattr("tinker_recovery.testing._auth.time.time", lambda: later)
        expired = await client.get("training_runs", headers={"X-API-Key": token})
        assert expired.status_code == 401


async def test_the_sdk_reads_the_capabilities_of_the_server(local: LocalTinker) -> None:
    rest = await anyio.to_thread.run_sync(
        lambda: RestClient(base_url=local.base_url, api_key=local.api_key)
    )
    capabilities = await rest.get_server_capabilities()
    assert [model.model_name for model in capabilities.supported_models]
    await anyio.to_thread.run_sync(rest.holder.close)


async def test_a_listed_checkpoint_names_its_base_model_as_newer_sdks_read_it(wire: Wire) -> None:
    run = await wire.create()
    await wire.result(await wire.save(run, 1, "zero"))
    (own,) = (await wire.get(f"training_runs/{run}/checkpoints"))["checkpoints"]
    (listed,) = (await wire.get("checkpoints"))["checkpoints"]
    assert own["base_model"] == listed["base_model"] == "b"


async def test_the_model_on_offer_can_be_trained_and_sampled(wire: Wire) -> None:
    (model,) = (await wire.get("get_server_capabilities"))["supported_models"]
    assert model["trainable"]
    assert model["sampleable"]
