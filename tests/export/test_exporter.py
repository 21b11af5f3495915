"""From a checkpoint to a folder, at a real server; what has to be in it is computed by hand."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
import safetensors.numpy
from a_run import (
    LLAMA,
    QWEN,
    an_exporter,
    endpoint_of,
    expected,
    facts,
    loaded,
    newest,
    trained,
    trained_weights,
)

from tinker_recovery.errors import ExportRefused, ExportUnavailable, NoUsableCheckpoint
from tinker_recovery.export.adapter import make_loadable
from tinker_recovery.export.exporter import PARTIAL, ExportProgress
from tinker_recovery.export.manifest import MANIFEST, Manifest
from tinker_recovery.service import StatusReader
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.export import Limits
from tinker_recovery.testing import FaultRule, LocalTinker

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries")


async def exports(local: LocalTinker) -> list[str]:
    """The exports that are at the service."""
    async with StatusReader(endpoint_of(local)) as reader:
        listed = [each async for each in reader.every_checkpoint()]
    return [each.tinker_path for each in listed if each.checkpoint_type == "external"]


@pytest.mark.parametrize("base_model", [LLAMA, QWEN])
async def test_an_export_has_what_was_trained_under_the_names_that_peft_has(
    local: LocalTinker, tmp_path: Path, base_model: str
) -> None:
    path = newest(local, await trained(base_model=base_model))
    async with an_exporter(local) as exporter:
        manifest = await exporter.export(facts(path, step=6), tmp_path / "to")
    tensors, trained_ = loaded(tmp_path / "to"), trained_weights(local, path)
    of = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"
    for layer, name, number in ((0, "q_proj", 0), (0, "o_proj", 3), (1, "q_proj", 7)):
        a, b = expected(trained_, number)
        assert np.array_equal(tensors[of.format(layer, name, "A")], a)
        assert np.array_equal(tensors[of.format(layer, name, "B")], b)
        assert np.any(b)
    config = json.loads((tmp_path / "to" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["lora_alpha"]) == (base_model, 32)
    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert len(tensors) == 2 * 7 * 2
    assert manifest == Manifest.of_folder(tmp_path / "to")
    assert {each.name for each in (tmp_path / "to").iterdir()} == {*manifest.files, MANIFEST}
    assert await exports(local) == []


async def test_a_folder_that_is_whole_is_left_as_it_is_and_one_of_something_else_is_refused(
    local: LocalTinker, tmp_path: Path
) -> None:
    supervisor = await trained()
    path = newest(local, supervisor)
    async with an_exporter(local) as exporter:
        first = await exporter.export(facts(path), tmp_path)
        before = local.stats.total
        assert await exporter.export(facts(path), tmp_path) == first
        assert local.stats.total == before
        other = local.checkpoints(supervisor.runs[0].segments[-1].run_id)[0].path
        with pytest.raises(ExportRefused, match=r"holds tinker://.* as safetensors: choose"):
            await exporter.export(facts(other), tmp_path)
        (tmp_path / "adapter_model.safetensors").unlink()
        again = await exporter.export(facts(path), tmp_path)
        assert again.digest == first.digest
        with (tmp_path / "adapter_model.safetensors").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\0\1")
        again = await exporter.export(facts(path), tmp_path)
        assert again.is_sound(tmp_path), "of the right size, and not what was exported"
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "adapter_config.json").write_text("{}")
        with pytest.raises(ExportRefused, match=r"has adapter_config\.json, which no export of"):
            await exporter.export(facts(path), tmp_path / "mine")
        with pytest.raises(ExportRefused, match="is a file: give a folder"):
            await exporter.export(facts(path), tmp_path / MANIFEST)


async def test_a_download_that_broke_off_goes_on_where_it_was(
    local: LocalTinker, tmp_path: Path
) -> None:
    path = newest(local, await trained())
    received: list[int] = []

    def progress(now: ExportProgress) -> None:
        if now.phase == "downloading":
            received.append(now.done_bytes)

    async with an_exporter(local) as exporter:
        local.inject(FaultRule("truncate", request="download", times=3))
        local.inject(FaultRule("status", request="download", status=503, times=3))
        with pytest.raises(ExportUnavailable, match="the next try goes on from there"):
            await exporter.export(facts(path), tmp_path, progress=progress)
        there = sum(each.stat().st_size for each in (tmp_path / PARTIAL / "files").iterdir())
        assert there > 0
        made = local.stats.by_route["save_weights_external"]
        local.release()
        manifest = await exporter.export(facts(path), tmp_path, progress=progress)
    assert local.stats.by_route["save_weights_external"] == made
    assert received[-1] == sum(size for size, _ in manifest.files.values())
    assert not (tmp_path / PARTIAL).exists()
    assert await exports(local) == []


async def test_no_more_is_said_to_have_been_downloaded_than_there_is(
    local: LocalTinker, tmp_path: Path
) -> None:
    """A service may list the weights alone, and have a config beside them."""
    path = newest(local, await trained())
    said: list[ExportProgress] = []
    async with an_exporter(local) as exporter:
        manifest = await exporter.export(facts(path), tmp_path, progress=said.append)
    assert all(each.done_bytes <= (each.total_bytes or 0) for each in said if each.done_bytes)
    last = [each for each in said if each.phase == "downloading"][-1]
    assert last.done_bytes == last.total_bytes == sum(size for size, _ in manifest.files.values())


async def test_an_export_that_is_gone_is_made_again(local: LocalTinker, tmp_path: Path) -> None:
    path = newest(local, await trained())
    async with an_exporter(local) as exporter:
        local.inject(FaultRule("status", request="download", status=503, times=3))
        with pytest.raises(ExportUnavailable):
            await exporter.export(facts(path), tmp_path)
        (left,) = await exports(local)
        async with StatusReader(endpoint_of(local)) as reader:
            await CheckpointCalls(reader.http).delete(left)
        await exporter.export(facts(path), tmp_path)
    assert local.stats.by_route["save_weights_external"] == 2


async def test_a_checkpoint_that_was_deleted_meanwhile_is_named(
    local: LocalTinker, tmp_path: Path
) -> None:
    path = newest(local, await trained())
    async with an_exporter(local) as exporter:
        with pytest.raises(NoUsableCheckpoint, match=r"no checkpoint .*-gone \(any more\)"):
            await exporter.export(facts(f"{path}-gone"), tmp_path)
    assert not (tmp_path / PARTIAL).exists()


async def test_what_hangs_at_the_service_is_given_up_at_its_deadline(
    local: LocalTinker, tmp_path: Path
) -> None:
    path = newest(local, await trained())
    local.inject(FaultRule("hang", request="save_weights_external"))
    async with an_exporter(local, Limits(export_s=0.2, close_s=2.0)) as exporter:
        with pytest.raises(ExportUnavailable, match="save_weights_external"):
            await exporter.export(facts(path), tmp_path)
        await exporter.export(facts(path), tmp_path)


@pytest.mark.parametrize("request_", ["load_weights", "save_weights_external"])
@pytest.mark.parametrize(
    ("category", "raised"),
    [("server", ExportUnavailable), ("unknown", ExportUnavailable), ("user", ExportRefused)],
)
async def test_what_the_service_blames_itself_for_may_be_tried_again(
    local: LocalTinker, tmp_path: Path, request_: Any, category: Any, raised: type[Exception]
) -> None:
    path = newest(local, await trained())
    local.inject(FaultRule("fail", request=request_, category=category))
    async with an_exporter(local) as exporter:
        with pytest.raises(raised, match="injected backend failure"):
            await exporter.export(facts(path), tmp_path)
        await exporter.export(facts(path), tmp_path)


async def test_a_checkpoint_that_is_gone_is_named_where_the_service_blames_itself_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LocalTinker(dialect="server_category") as local:
        monkeypatch.setenv("TINKER_BASE_URL", local.base_url)
        monkeypatch.setenv("TINKER_API_KEY", local.api_key)
        path = newest(local, await trained())
        async with an_exporter(local) as exporter, StatusReader(endpoint_of(local)) as reader:
            await CheckpointCalls(reader.http).delete(path)
            with pytest.raises(NoUsableCheckpoint, match="was deleted, or has expired"):
                await exporter.export(facts(path), tmp_path)


async def test_a_service_without_exports_is_said_to_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LocalTinker(missing=("save_weights_external",)) as local:
        monkeypatch.setenv("TINKER_BASE_URL", local.base_url)
        monkeypatch.setenv("TINKER_API_KEY", local.api_key)
        path = newest(local, await trained())
        async with an_exporter(local) as exporter:
            with pytest.raises(ExportRefused, match="this service has no exports"):
                await exporter.export(facts(path), tmp_path)


_IN_A_PROCESS = """
import asyncio, json, sys
from pathlib import Path
from pydantic import SecretStr
from tinker_recovery.errors import ExportError
from tinker_recovery.export.exporter import Exporter
from tinker_recovery.export.manifest import CheckpointFacts
from tinker_recovery.service.base import Endpoint

async def main(url, key, path, to):
    async with Exporter(Endpoint(url, SecretStr(key))) as exporter:
        def progress(now):
            print(now.phase, now.done_bytes, flush=True)
        facts = CheckpointFacts(path=path, run="sft")
        try:
            await exporter.export(facts, Path(to), progress=progress)
        except ExportError as error:
            print(type(error).__name__, error, flush=True)
        else:
            print("whole", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def _start(local: LocalTinker, path: str, to: Path, **how: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _IN_A_PROCESS, local.base_url, local.api_key, path, str(to)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how)  # noqa: S603 - our own


async def test_a_full_disk_is_said_and_what_is_there_is_gone_on_with(
    local: LocalTinker, tmp_path: Path
) -> None:
    path = newest(local, await trained())

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = _start(local, path, tmp_path / "to", preexec_fn=little_room)
    said, _ = await anyio.to_thread.run_sync(process.communicate)
    assert "ExportUnavailable the disk of" in said
    assert "make room, and try again" in said
    process = _start(local, path, tmp_path / "to")
    said, _ = await anyio.to_thread.run_sync(process.communicate)
    assert said.splitlines()[-1] == "whole"
    assert local.stats.by_route["save_weights_external"] == 1
    make_loadable(tmp_path / "to")


async def test_what_says_that_all_is_there_is_on_the_disk_after_what_it_says_that_of(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves is what was synced, and renames in any order between two syncs."""
    path = newest(local, await trained())
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def name_of(place: str | Path) -> str:
        return os.path.relpath(place, tmp_path)  # the server, which is here as well, has others

    def told_sync(number: int) -> None:
        sync(number)
        done.append(f"sync {name_of(Path(f'/proc/self/fd/{number}').readlink())}")

    def told_replace(self: Path, target: Path) -> Path:
        done.append(f"rename to {name_of(target)}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", told_sync)
    monkeypatch.setattr(Path, "replace", told_replace)
    async with an_exporter(local) as exporter:
        await exporter.export(facts(path), tmp_path / "to")

    def last(what: str) -> int:
        return len(done) - 1 - done[::-1].index(what)

    files = ("adapter_config.json", "adapter_model.safetensors")
    downloaded, manifest = done.index("rename to to/.partial/state.json"), f"to/.partial/{MANIFEST}"
    downloaded = done.index("rename to to/.partial/state.json", downloaded + 1)
    for name in files:
        here = f"to/.partial/files/{name}"
        assert done.index(f"sync {here}") < downloaded, "an export is noted as downloaded"
        assert downloaded < last(f"sync {here}") < done.index(f"rename to {manifest}")
        assert done.index(f"rename to {manifest}") < done.index(f"rename to to/{name}")
        assert done.index(f"rename to to/{name}") < done.index("sync to")
    assert done.index(f"sync {manifest}.part") < done.index(f"rename to {manifest}")
    assert done.index("sync to") < done.index(f"rename to to/{MANIFEST}") < last("sync to")


async def test_an_export_is_gone_on_with_after_a_kill(local: LocalTinker, tmp_path: Path) -> None:
    path = newest(local, await trained())
    local.inject(FaultRule("slow", request="download", delay_s=30.0, times=1))
    process = _start(local, path, tmp_path / "to")
    while "exporting" not in await anyio.to_thread.run_sync(process.stdout.readline):  # type: ignore[union-attr]  # a pipe
        pass
    while not local.stats.by_route.get("download"):  # noqa: ASYNC110 - another process's doing
        await anyio.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    await anyio.to_thread.run_sync(process.communicate)
    process = _start(local, path, tmp_path / "to")
    said, _ = await anyio.to_thread.run_sync(process.communicate)
    assert said.splitlines()[-1] == "whole"
    assert local.stats.by_route["save_weights_external"] == 1
    assert await exports(local) == []


# What the service exports, and peft would not load, or would load as another model


def _folder(to: Path, config: dict[str, object], tensors: dict[str, tuple[int, ...]]) -> Path:
    to.mkdir()
    (to / "adapter_config.json").write_text(json.dumps(config))
    made = {name: np.full(shape, 1.5, np.float32) for name, shape in tensors.items()}
    safetensors.numpy.save_file(made, to / "adapter_model.safetensors")
    return to


_CONFIG: dict[str, object] = {"base_model_name_or_path": QWEN, "r": 2, "lora_alpha": 4}
_Q = "base_model.model.model.layers.0.self_attn.q_proj"
_TWO: dict[str, tuple[int, ...]] = {f"{_Q}.lora_A.weight": (2, 8), f"{_Q}.lora_B.weight": (6, 2)}


@pytest.mark.parametrize(
    ("config", "tensors", "why"),
    [
        ({**_CONFIG, "lora_alpha": None}, _TWO, "lora_alpha=None: a number above 0 is needed"),
        ({"lora_alpha": 4}, _TWO, "r=None"),
        ({"r": 2, "lora_alpha": 4}, _TWO, "does not say what the base model is"),
        (_CONFIG, {"layers.0.q_proj.lora_A": (2, 8)}, "peft does not load by these names"),
        (_CONFIG, {f"{_Q}.lora_A.weight": (3, 2, 8)}, "mixture of experts"),
        (_CONFIG, {f"{_Q}.lora_A.weight": (2, 8)}, "not the other factor"),
        ({**_CONFIG, "r": 3}, _TWO, "not the rank 3"),
        (_CONFIG, {}, "has no tensor of an adapter"),
    ],
)
def test_an_adapter_that_peft_would_load_wrongly_is_refused(
    tmp_path: Path, config: dict[str, object], tensors: dict[str, tuple[int, ...]], why: str
) -> None:
    folder = _folder(tmp_path / "export", config, tensors)
    with pytest.raises(ExportRefused, match=why):
        make_loadable(folder)


def test_a_config_that_could_not_be_written_whole_is_there_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it would be taken, at the next try, for what the service had exported."""
    folder = _folder(tmp_path / "export", _CONFIG, _TWO)
    write = Path.write_text

    def write_half(self: Path, data: str) -> int:
        write(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", write_half)
        with pytest.raises(OSError, match="No space left"):
            make_loadable(folder)
    assert make_loadable(folder).config["target_modules"] == ["q_proj"]


def test_what_follows_from_the_rest_is_filled_in_and_the_unembedding_gets_its_name(
    tmp_path: Path,
) -> None:
    unembed = "base_model.model.model.unembed_tokens"
    both = {f"{unembed}.lora_A.weight": (2, 8), f"{unembed}.lora_B.weight": (9, 2)}
    folder = _folder(tmp_path / "export", {"r": 2, "lora_alpha": 4}, {**_TWO, **both})
    adapter = make_loadable(folder, base_model=QWEN)
    assert [each.name for each in adapter.modules] == [
        "lm_head",
        "model.layers.0.self_attn.q_proj",
    ]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == ["lm_head", "q_proj"]
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", QWEN)
    tensors = loaded(folder)
    assert tensors["base_model.model.lm_head.lora_B.weight"].shape == (9, 2)
    assert all(np.all(tensor == 1.5) for tensor in tensors.values())
    assert make_loadable(folder) == adapter


def test_a_folder_without_the_files_of_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="it has nothing"):
        make_loadable(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[")
    (tmp_path / "adapter_model.safetensors").write_text("short")
    with pytest.raises(ExportRefused, match="is not JSON"):
        make_loadable(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ExportRefused, match="is no object"):
        make_loadable(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(_CONFIG))
    with pytest.raises(ExportRefused, match=r"adapter_model\.safetensors is damaged"):
        make_loadable(tmp_path)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ExportRefused, match="is no manifest"):
        Manifest.of_folder(tmp_path)
