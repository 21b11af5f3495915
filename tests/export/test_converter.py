"""llama.cpp's own converter, run for what needs more than names.

Skipped unless TINKER_RECOVERY_LLAMA_CPP is a checkout, and what its script imports is installed:
torch, transformers, sentencepiece. How it is called, and what becomes of what it says, is tested in
test_formats.py with a stand-in.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from a_run import LLAMA, an_exporter, facts, loaded, newest, trained

from tinker_recovery.export.gguf_file import LLAMA_CPP
from tinker_recovery.testing import LocalTinker, write_tiny_model

if not os.environ.get(LLAMA_CPP):
    pytest.skip(f"{LLAMA_CPP} is not set", allow_module_level=True)
gguf = pytest.importorskip("gguf", reason='gguf is not installed: ".[gguf]" has it')
tokenizers = pytest.importorskip("tokenizers", reason="transformers is not installed")

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries")


def write_tokenizer(folder: Path) -> None:
    """One of bytes, as the script reads it with a Llama."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(61))]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)  # noqa: S106 - a token of text
    )
    made.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback()])
    made.save(str(folder / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    said["tokenizer_class"] = "LlamaTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


async def test_a_llama_is_converted_with_the_rows_of_its_heads_reordered(
    local: LocalTinker, tmp_path: Path
) -> None:
    path = newest(local, await trained(base_model=LLAMA))
    base = tmp_path / "base"
    write_tiny_model(base, LLAMA)
    write_tokenizer(base)
    of = facts(path, base_model=LLAMA)
    async with an_exporter(local) as exporter:
        await exporter.export(of, tmp_path / "peft")
        await exporter.export(of, tmp_path / "gguf", "gguf", base=base)
    there = {
        each.name: each.data for each in gguf.GGUFReader(tmp_path / "gguf" / "adapter.gguf").tensors
    }
    peft = loaded(tmp_path / "peft")
    assert len(there) == len(peft)
    heads = json.loads((base / "config.json").read_text())["num_attention_heads"]
    for name, module in (("attn_q", "q_proj"), ("attn_output", "o_proj")):
        a, b = (
            peft[f"base_model.model.model.layers.1.self_attn.{module}.lora_{which}.weight"]
            for which in "AB"
        )
        if name == "attn_q":
            b = b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)
        assert np.array_equal(there[f"blk.1.{name}.weight.lora_a"].reshape(a.shape), a)
        assert np.array_equal(there[f"blk.1.{name}.weight.lora_b"].reshape(b.shape), b)
