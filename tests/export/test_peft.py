"""What is exported, loaded by the real ``peft`` on a real transformer, compared with arithmetic.

torch is too large for the environment of every change (``.ci/run`` has it not): these are skipped
without it. ``pip install "tinker-recovery[export-test]"`` has them run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest
import safetensors.numpy
from a_run import LLAMA, QWEN, an_exporter, facts, newest, trained

from tinker_recovery.checkpoint_policy import Format
from tinker_recovery.export.merge import merge
from tinker_recovery.testing import LocalTinker, write_tiny_model

_NEEDED = ("torch", "peft", "transformers")
for _each in _NEEDED:
    pytest.importorskip(_each, reason=f'{_each} is not installed: ".[export-test]" has it')

_COMPARE = """
import json, sys, torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

model, adapter, weights = sys.argv[1:]
tokens = torch.arange(16)[None]
with torch.inference_mode():
    base = AutoModelForCausalLM.from_pretrained(model)
    before = base(tokens).logits.clone()
    loaded = PeftModel.from_pretrained(base, adapter)(tokens).logits.clone()
    merged = AutoModelForCausalLM.from_pretrained(model)
    state = merged.state_dict()
    config = json.load(open(adapter + "/adapter_config.json"))
    tensors = load_file(weights)
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")].double()
            at = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            state[at] += (config["lora_alpha"] / config["r"] * (b @ a.double())).float()
    merged.load_state_dict(state)
    by_hand = merged(tokens).logits
print(json.dumps({
    "moved": float((loaded - before).abs().max()),
    "off": float((loaded - by_hand).abs().max()),
}))
"""


@pytest.mark.parametrize("form", ["safetensors", "pytorch"])
@pytest.mark.parametrize("base_model", [LLAMA, QWEN, "Qwen/Qwen2.5-7B"])
async def test_peft_loads_it_and_the_logits_are_those_of_the_tensors(
    local: LocalTinker, tmp_path: Path, base_model: str, form: Format
) -> None:
    path = newest(local, await trained(base_model=base_model))
    write_tiny_model(tmp_path / "model", base_model)
    async with an_exporter(local) as exporter:
        await exporter.export(facts(path), tmp_path / "adapter", form)
        await exporter.export(facts(path), tmp_path / "plain")
    weights = tmp_path / "plain" / "adapter_model.safetensors"
    files = map(str, (tmp_path / "model", tmp_path / "adapter", weights))
    command = [sys.executable, "-c", _COMPARE, *files]
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["moved"] > 0.1
    assert found["off"] < 1e-3


async def test_a_merge_by_the_cookbook_is_the_model_that_peft_computes(
    local: LocalTinker, tmp_path: Path
) -> None:
    pytest.importorskip("tinker_cookbook", reason="tinker_cookbook is not installed")
    path = newest(local, await trained())
    write_tiny_model(tmp_path / "model", QWEN)
    async with an_exporter(local) as exporter:
        await exporter.export(facts(path), tmp_path / "adapter")
    await merge(tmp_path / "adapter", str(tmp_path / "model"), tmp_path / "merged")
    merged = safetensors.numpy.load_file(tmp_path / "merged" / "model.safetensors")
    plain = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    assert merged.keys() == plain.keys()
