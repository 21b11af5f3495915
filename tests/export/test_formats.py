"""The other formats: GGUF read back bit by bit, and what it cannot hold is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from a_run import LLAMA, QWEN, an_exporter, facts, loaded, newest, trained
from numpy.typing import NDArray

from tinker_recovery.errors import ExportRefused, ExportUnavailable
from tinker_recovery.export import formats
from tinker_recovery.export.adapter import Adapter, make_loadable
from tinker_recovery.export.gguf_file import LLAMA_CPP, write_gguf
from tinker_recovery.testing import LocalTinker

gguf = pytest.importorskip("gguf", reason='gguf is not installed: ".[gguf]" has it')

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""What llama.cpp calls the modules of a layer."""


def read_back(file: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The metadata and the tensors of a GGUF file, by the package's own reader."""
    reader = gguf.GGUFReader(file)
    said = {name: each.contents() for name, each in reader.fields.items()}
    return said, {each.name: np.array(each.data) for each in reader.tensors}


@pytest.mark.parametrize(
    ("base_model", "architecture"), [(QWEN, "qwen3"), ("Qwen/Qwen2.5-7B-Instruct", "qwen2")]
)
async def test_a_gguf_file_has_the_same_bits_under_the_names_of_llama_cpp(
    local: LocalTinker, tmp_path: Path, base_model: str, architecture: str
) -> None:
    path = newest(local, await trained(base_model=base_model))
    async with an_exporter(local) as exporter:
        await exporter.export(facts(path), tmp_path / "peft")
        await exporter.export(facts(path), tmp_path / "gguf", "gguf")
    assert {each.name for each in (tmp_path / "gguf").iterdir()} == {
        "adapter.gguf",
        "tinker_recovery.json",
    }
    said, tensors = read_back(tmp_path / "gguf" / "adapter.gguf")
    assert said["general.architecture"] == architecture
    assert (said["general.type"], said["adapter.type"]) == ("adapter", "lora")
    assert said["adapter.lora.alpha"] == 32.0
    peft = loaded(tmp_path / "peft")
    assert len(tensors) == len(peft)
    for layer in (0, 1):
        for module, name in _NAMES.items():
            for which in "AB":
                of = f"base_model.model.model.layers.{layer}.{module}.lora_{which}.weight"
                there = tensors[f"blk.{layer}.{name}.weight.lora_{which.lower()}"]
                assert there.dtype == np.float32
                assert np.array_equal(there.reshape(peft[of].shape), peft[of]), of


async def test_a_llama_needs_more_than_names_and_is_refused_or_converted_by_llama_cpp(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = newest(local, await trained(base_model=LLAMA))
    async with an_exporter(local) as exporter:
        monkeypatch.delenv(LLAMA_CPP, raising=False)
        with pytest.raises(ExportRefused, match=r"rows in another order.*convert_lora_to_gguf\.py"):
            await exporter.export(facts(path, base_model=LLAMA), tmp_path / "to", "gguf")
        monkeypatch.setenv(LLAMA_CPP, str(tmp_path))
        with pytest.raises(ExportRefused, match=r"it has no convert_lora_to_gguf\.py"):
            await exporter.export(facts(path, base_model=LLAMA), tmp_path / "to", "gguf")
        script = tmp_path / "convert_lora_to_gguf.py"
        script.write_text("import sys; sys.exit('Failed to load base model config')")
        with pytest.raises(ExportRefused, match="status 1: Failed to load base model config"):
            await exporter.export(facts(path, base_model=LLAMA), tmp_path / "to", "gguf")
        script.write_text(
            "import sys, json, pathlib\n"
            "at = sys.argv.index('--outfile') + 1\n"
            "pathlib.Path(sys.argv[at]).write_text(json.dumps(sys.argv[1:]))\n"
        )
        manifest = await exporter.export(facts(path, base_model=LLAMA), tmp_path / "to", "gguf")
    given = json.loads((tmp_path / "to" / "adapter.gguf").read_text())
    assert given[:3] == ["--outtype", "f32", "--outfile"]
    assert manifest.format == "gguf"


def _adapter(
    folder: Path, module: str, base: str, dtype: type[np.floating[Any]] = np.float32
) -> Adapter:
    folder.mkdir(parents=True, exist_ok=True)
    of = f"base_model.model.{module}"
    tensors = {
        f"{of}.lora_A.weight": np.arange(16).reshape(2, 8).astype(dtype),
        f"{of}.lora_B.weight": np.arange(12).reshape(6, 2).astype(dtype),
    }
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    config = {"base_model_name_or_path": base, "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return make_loadable(folder)


_Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("module", "base", "why"),
    [
        (_Q, "Qwen/Qwen3-30B-A3B", "is not known here"),
        (_Q, "somebody/theirs", "is not known here"),
        ("lm_head", QWEN, "tied embeddings"),
        ("model.layers.0.self_attn.other", QWEN, "qwen3 has no tensor"),
    ],
)
async def test_what_may_need_more_than_names_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, base: str, why: str
) -> None:
    monkeypatch.delenv(LLAMA_CPP, raising=False)
    with pytest.raises(ExportRefused, match=why):
        await write_gguf(_adapter(tmp_path, module, base), tmp_path / "out.gguf", base=None)


@pytest.mark.parametrize(
    "died",
    [
        "raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))",
        "raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
async def test_a_converter_that_had_no_room_or_was_killed_may_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: str
) -> None:
    script = tmp_path / "convert_lora_to_gguf.py"
    script.write_text(f"import errno, os, signal\n{died}\n")
    monkeypatch.setenv(LLAMA_CPP, str(tmp_path))
    with pytest.raises(ExportUnavailable, match=r"ended with status -?[0-9]+: "):
        await write_gguf(_adapter(tmp_path / "a", _Q, LLAMA), tmp_path / "out.gguf", base=None)


async def test_the_base_models_config_says_the_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LLAMA_CPP, raising=False)
    adapter = _adapter(tmp_path / "a", "lm_head", "somebody/theirs")
    base = tmp_path / "base"
    with pytest.raises(ExportRefused, match=r"has no config\.json"):
        await write_gguf(adapter, tmp_path / "out.gguf", base=base)
    base.mkdir()
    config: dict[str, object] = {"model_type": "qwen3_moe"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportRefused, match="'qwen3_moe' may need more than other names"):
        await write_gguf(adapter, tmp_path / "out.gguf", base=base)
    config = {"model_type": "qwen3", "tie_word_embeddings": False}
    (base / "config.json").write_text(json.dumps(config))
    await write_gguf(adapter, tmp_path / "out.gguf", base=base)
    assert set(read_back(tmp_path / "out.gguf")[1]) == {
        "output.weight.lora_a",
        "output.weight.lora_b",
    }


async def test_a_dtype_that_llama_cpp_does_not_add_up_is_refused(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, _Q, QWEN, np.float64)
    with pytest.raises(ExportRefused, match="is F64, and F32, F16 or BF16 are allowed"):
        await write_gguf(adapter, tmp_path / "out.gguf", base=None)


async def test_a_format_whose_package_is_missing_is_refused_before_anything_is_asked(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    before = local.stats.total
    async with an_exporter(local) as exporter:
        for form in ("pytorch", "gguf"):
            with pytest.raises(ExportRefused, match=r'install "tinker-recovery\[(torch|gguf)\]"'):
                await exporter.export(facts("tinker://r/weights/x"), tmp_path, form)
    assert local.stats.total == before


async def test_what_torch_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "check_format", lambda _: None)
    monkeypatch.setattr(formats, "_TO_PYTORCH", "raise SystemExit('no room')")
    with pytest.raises(Exception, match=r"adapter_model\.bin could not be written: no room"):
        await formats.convert(_adapter(tmp_path, _Q, QWEN), "pytorch")
