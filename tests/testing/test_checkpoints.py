"""Checkpoints at the local server: names, metadata, expiry, publishing, damage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
import pytest
import pytest_asyncio
from tinker.lib.public_interfaces.rest_client import RestClient
from virtual import ManualClock
from wire import Wire, wired

from tinker_recovery.testing import LocalTinker

HOUR_S = 3600


@pytest.fixture
def wall() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest_asyncio.fixture
async def server(tmp_path: Path, wall: ManualClock) -> AsyncIterator[LocalTinker]:
    async with LocalTinker(tmp_path, wall=wall) as server:
        yield server


async def names(wire: Wire, run: str) -> list[str]:
    found = (await wire.get(f"training_runs/{run}/checkpoints"))["checkpoints"]
    return [one["checkpoint_id"].removeprefix("weights/") for one in found]


async def test_the_sdk_reads_manages_and_deletes_a_checkpoint(
    server: LocalTinker, wire: Wire, wall: ManualClock
) -> None:
    run = await wire.create()
    metadata = {"step": "3", "loss": "0.5"}
    path = (await wire.result(await wire.save(run, 1, "a", user_metadata=metadata)))["path"]
    assert path == f"tinker://{run}/weights/a"
    rest = await anyio.to_thread.run_sync(
        lambda: RestClient(base_url=server.base_url, api_key=server.api_key)
    )
    (checkpoint,) = (await rest.list_checkpoints(run)).checkpoints
    assert checkpoint.user_metadata == metadata
    assert checkpoint.tinker_path == path
    assert checkpoint.checkpoint_type == "training"
    assert (checkpoint.size_bytes or 0) > 1000
    assert (checkpoint.public, checkpoint.expires_at) == (False, None)
    assert checkpoint.time.timestamp() == wall.now

    info = await rest.get_weights_info_by_tinker_path(path)
    assert (info.base_model, info.is_lora, info.lora_rank) == ("b", True, 4)
    found = await rest.get_training_run(run)
    assert (found.corrupted, found.last_checkpoint) == (False, checkpoint)

    await rest.set_checkpoint_ttl_from_tinker_path(path, HOUR_S)
    await rest.publish_checkpoint_from_tinker_path(path)
    (checkpoint,) = (await rest.list_user_checkpoints()).checkpoints
    assert checkpoint.public
    assert checkpoint.expires_at is not None
    assert checkpoint.expires_at.timestamp() == wall.now + HOUR_S
    await rest.unpublish_checkpoint_from_tinker_path(path)
    await rest.set_checkpoint_ttl_from_tinker_path(path, None)
    (checkpoint,) = (await rest.list_user_checkpoints()).checkpoints
    assert (checkpoint.public, checkpoint.expires_at) == (False, None)
    await rest.delete_checkpoint_from_tinker_path(path)
    assert (await rest.list_checkpoints(run)).checkpoints == []
    await anyio.to_thread.run_sync(rest.holder.close)


async def test_a_taken_name_is_refused_unless_it_is_to_be_overwritten(wire: Wire) -> None:
    run = await wire.create()
    await wire.result(await wire.save(run, 1, "a", user_metadata={"n": "1"}))
    body = {"model_id": run, "seq_id": 2, "path": "a"}
    await wire.post("save_weights", body, status=409)
    await wire.result(await wire.optim_step(run, 2))
    again = await wire.save(run, 3, "a", overwrite=True, user_metadata={"n": "2"})
    path = (await wire.result(again))["path"]
    (found,) = (await wire.get(f"training_runs/{run}/checkpoints"))["checkpoints"]
    assert found["user_metadata"] == {"n": "2"}
    assert await wire.load(1, path) == {"path": path, "type": "load_weights"}


async def test_a_name_is_taken_while_its_save_is_still_in_the_queue(wire: Wire) -> None:
    run = await wire.create()
    await wire.save(run, 2, "a")
    body = {"model_id": run, "seq_id": 3, "path": "a"}
    await wire.post("save_weights", body, status=409)


@pytest.mark.parametrize("name", ["a/b", "..", ".part", "é", "x" * 200])
async def test_a_name_that_is_not_allowed_is_refused(wire: Wire, name: str) -> None:
    run = await wire.create()
    await wire.post("save_weights", {"model_id": run, "seq_id": 1, "path": name}, status=400)


@pytest.mark.parametrize("name", ["run", "run.json", "a.b", "0001"])
async def test_no_name_gets_in_the_way_of_the_servers_own_files(
    tmp_path: Path, wire: Wire, name: str
) -> None:
    run = await wire.create()
    await wire.result(await wire.save(run, 1, name))
    assert await names(wire, run) == [name]
    async with LocalTinker(tmp_path) as again:
        assert again.runs() == [run]


async def test_checkpoints_keep_their_order_with_a_stopped_clock(
    tmp_path: Path, wire: Wire
) -> None:
    run = await wire.create()
    order = ["c", "a", "d", "b"]
    for seq_id, name in enumerate(order, 1):
        await wire.result(await wire.save(run, seq_id, name))
    assert await names(wire, run) == order
    last = (await wire.get(f"training_runs/{run}"))["last_checkpoint"]
    assert last["checkpoint_id"] == "weights/b"
    async with LocalTinker(tmp_path) as again, wired(again) as other:
        assert await names(other, run) == order


@pytest.mark.parametrize("ttl_s", [3599, 10 * 365 * 24 * HOUR_S + 1, 0, -1])
async def test_a_ttl_out_of_range_is_refused(wire: Wire, ttl_s: int) -> None:
    run = await wire.create()
    body = {"model_id": run, "seq_id": 1, "path": "a", "ttl_seconds": ttl_s}
    await wire.post("save_weights", body, status=400)


async def test_an_expired_checkpoint_is_listed_nowhere_and_cannot_be_loaded(
    server: LocalTinker, wire: Wire, wall: ManualClock
) -> None:
    run = await wire.create()
    path = (await wire.result(await wire.save(run, 1, "a", ttl_seconds=HOUR_S)))["path"]
    wall.now += HOUR_S - 1
    assert await names(wire, run) == ["a"]
    wall.now += 1
    assert await names(wire, run) == []
    assert (await wire.get("checkpoints"))["checkpoints"] == []
    assert "last_checkpoint" not in await wire.get(f"training_runs/{run}")
    await wire.post("weights_info", {"tinker_path": path}, status=404)
    assert (await wire.load(1, path))["category"] == "user"
    assert server.runs() == [run]
    await wire.result(await wire.save(run, 2, "a"))


async def test_a_damaged_or_missing_checkpoint_fails_its_load(tmp_path: Path, wire: Wire) -> None:
    run = await wire.create()
    path = (await wire.result(await wire.save(run, 1, "a")))["path"]
    (file,) = tmp_path.rglob("*.safetensors")  # noqa: ASYNC240 - a test folder
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert (await wire.load(1, path))["category"] == "user"
    file.unlink()
    assert (await wire.load(2, path))["category"] == "user"
    assert (await wire.load(3, path + "b"))["category"] == "user"
    assert (await wire.load(4, "tinker://nobody/weights/a"))["category"] == "user"


async def test_publishing_and_unpublishing_twice_is_refused(wire: Wire) -> None:
    run = await wire.create()
    await wire.result(await wire.save(run, 1, "a"))
    url = f"training_runs/{run}/checkpoints/weights/a"
    codes = [
        (await wire.http.delete(f"{url}/publish")).status_code,
        (await wire.http.post(f"{url}/publish")).status_code,
        (await wire.http.post(f"{url}/publish")).status_code,
        (await wire.http.delete(f"{url}/publish")).status_code,
        (await wire.http.delete(url)).status_code,
        (await wire.http.delete(url)).status_code,
    ]
    assert codes == [409, 200, 409, 200, 200, 404]


async def test_all_checkpoints_come_in_pages(wire: Wire) -> None:
    for number in range(2):
        run = await wire.create(number)
        for seq_id in (1, 2):
            await wire.result(await wire.save(run, seq_id, f"c{seq_id}"))
    pages = [await wire.get("checkpoints", limit=3, offset=offset) for offset in (0, 3)]
    assert [len(page["checkpoints"]) for page in pages] == [3, 1]
    assert pages[0]["cursor"]["total_count"] == 4
    assert len({c["tinker_path"] for page in pages for c in page["checkpoints"]}) == 4
