"""A GGUF adapter, loaded by the real llama.cpp: it answers as if the adapter were merged in.

``pip install "tinker-recovery[export-test]"`` has a llama.cpp (``xllamacpp``); without it this is
skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import pytest
import safetensors.numpy
from a_run import QWEN, an_exporter, facts, loaded, newest, trained
from numpy.typing import NDArray

from tinker_recovery.testing import LocalTinker, write_tiny_model

gguf = pytest.importorskip("gguf", reason='gguf is not installed: ".[gguf]" has it')
pytest.importorskip("xllamacpp", reason='xllamacpp is not installed: ".[export-test]" has it')

_VOCABULARY = 64

_ANSWER = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.warmup = sys.argv[1], 128, False
if len(sys.argv) > 2:
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(sys.argv[2], 1.0)]
server = xllamacpp.Server(params)
asked = {"prompt": [1, 10, 20, 30, 40], "n_predict": 1, "n_probs": 64, "temperature": 0.0}
answer = server.handle_completions(asked)
found = answer.get("completion_probabilities") or answer["choices"][0]["logprobs"]["content"]
print()
print(json.dumps({each["id"]: each["logprob"] for each in found[0]["top_logprobs"]}), flush=True)
"""


def write_base(to: Path, folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """The base model as GGUF, with a tokenizer that nobody uses."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(to, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(_VOCABULARY)
    writer.add_tokenizer_model("llama")
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{number:02X}>" for number in range(_VOCABULARY - len(special))]
    writer.add_token_list([*special, *bytes_])
    writer.add_token_scores([0.0] * _VOCABULARY)
    writer.add_token_types([2, 3, 3] + [6] * len(bytes_))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    architecture = {name: each for each, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(
        architecture[config["model_type"]], config["num_hidden_layers"]
    )
    for name, tensor in tensors.items():
        bare, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(bare)}.{suffix}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


async def answer(*files: Path) -> dict[str, float]:
    """The logprobs of the next token, by llama.cpp in a process of its own."""
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(  # noqa: S603 - our own
            [sys.executable, "-c", _ANSWER, *map(str, files)],
            check=True,
            capture_output=True,
            text=True,
        )
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def apart(one: dict[str, float], other: dict[str, float]) -> float:
    return max(abs(one[token] - other[token]) for token in one)


@pytest.mark.parametrize("base_model", [QWEN, "Qwen/Qwen2.5-7B"])
async def test_llama_cpp_answers_with_the_adapter_as_with_the_merged_weights(
    local: LocalTinker, tmp_path: Path, base_model: str
) -> None:
    path = newest(local, await trained(base_model=base_model))
    async with an_exporter(local) as exporter:
        await exporter.export(facts(path), tmp_path / "peft")
        await exporter.export(facts(path), tmp_path / "gguf", "gguf")
    write_tiny_model(tmp_path / "model", base_model)
    tensors = dict(safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors"))
    write_base(tmp_path / "base.gguf", tmp_path / "model", tensors)
    peft = loaded(tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    for name, a in peft.items():
        if name.endswith(".lora_A.weight"):
            b = peft[name.replace("lora_A", "lora_B")].astype(np.float64)
            at = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            moved = tensors[at] + config["lora_alpha"] / config["r"] * (b @ a.astype(np.float64))
            tensors[at] = moved.astype(np.float32)
    write_base(tmp_path / "merged.gguf", tmp_path / "model", tensors)
    plain = await answer(tmp_path / "base.gguf")
    adapted = await answer(tmp_path / "base.gguf", tmp_path / "gguf" / "adapter.gguf")
    merged = await answer(tmp_path / "merged.gguf")
    assert len(adapted) == _VOCABULARY
    assert apart(adapted, plain) > 0.1
    assert apart(adapted, merged) < 0.01  # its cache has half precision
