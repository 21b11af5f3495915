"""What an export holds: a run's LoRA factors as those of a tiny transformer, as PEFT names them.

The server's own model has two factors, ``lora_a`` and ``lora_b``. Each module of a transformer with
two small layers gets its factors from these two, repeated, shifted and scaled, so an
export is a function of the run's weights alone, and B is zero as long as ``lora_b`` is. Which
transformer it is, a Llama or a Qwen, follows from the base model's name;
:func:`write_tiny_model` writes one that an export can be loaded into.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tinker_recovery.testing._model import VOCABULARY, Floats

ALPHA = 32
"""The ``lora_alpha`` of every export."""

_HIDDEN, _INNER, _LAYERS, _HEADS, _KV_HEADS = VOCABULARY, 128, 2, 4, 2
_HEAD = _HIDDEN // _HEADS

_MODULES = {
    "self_attn.q_proj": (_HEADS * _HEAD, _HIDDEN),
    "self_attn.k_proj": (_KV_HEADS * _HEAD, _HIDDEN),
    "self_attn.v_proj": (_KV_HEADS * _HEAD, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HEADS * _HEAD),
    "mlp.gate_proj": (_INNER, _HIDDEN),
    "mlp.up_proj": (_INNER, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _INNER),
}
"""Output and input size of each linear module of a layer."""


@dataclass(frozen=True, slots=True)
class _Kind:
    model_type: str
    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False


_LLAMA = _Kind("llama", "LlamaForCausalLM")
_QWEN2 = _Kind("qwen2", "Qwen2ForCausalLM", qkv_bias=True)
_QWEN3 = _Kind("qwen3", "Qwen3ForCausalLM", qk_norm=True)


def _kind(base_model: str) -> _Kind:
    name = base_model.lower()
    if "llama" in name:
        return _LLAMA
    return _QWEN2 if "qwen2" in name else _QWEN3


def peft_config(base_model: str, rank: int) -> dict[str, Any]:
    """The ``adapter_config.json`` of an export."""
    return {
        "base_model_name_or_path": base_model,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(name.rpartition(".")[2] for name in _MODULES),
        "inference_mode": True,
    }


def peft_tensors(weights: Mapping[str, Floats]) -> dict[str, Floats]:
    """The tensors of an export, from ``lora_a`` and ``lora_b`` of a run."""
    rank = len(weights["lora_b"])
    # The bytes of lora_b stay in their order, so one whose end was lost ends in zeros here as well.
    a, b = weights["lora_a"].T, weights["lora_b"].reshape(VOCABULARY, rank)
    found = {}
    for number, (module, (outer, inner)) in enumerate(_every_module()):
        of_a = np.tile(np.roll(a, number, axis=1), (1, inner // VOCABULARY))
        if outer < VOCABULARY:
            skipped = (VOCABULARY - outer) // 2
            of_b = b[skipped : skipped + outer]
        else:
            of_b = np.tile(b, (outer // VOCABULARY, 1))
        name = f"base_model.model.{module}"
        found[f"{name}.lora_A.weight"] = np.ascontiguousarray(of_a)
        found[f"{name}.lora_B.weight"] = of_b * np.float32(1 + number / 64)
    return found


def _every_module() -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(_LAYERS):
        for module, sizes in _MODULES.items():
            yield f"model.layers.{layer}.{module}", sizes


def write_tiny_model(folder: Path, base_model: str) -> None:
    """Write the tiny transformer that exports of a base model fit, as ``transformers`` reads it.

    Its weights are random, and the same for the same name: a Llama if the name says so, else a Qwen
    (Qwen2 or Qwen3). ``AutoModelForCausalLM.from_pretrained(folder)`` loads it, and
    ``PeftModel.from_pretrained(model, export)`` an export of a run of that base model on top.

    Args:
        folder: Made if it does not exist.
        base_model: For example ``"Qwen/Qwen3-8B"``.
    """
    kind = _kind(base_model)
    seed = int.from_bytes(hashlib.sha256(f"tiny {base_model}".encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> Floats:
        return (rng.standard_normal(shape) * 0.05).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": drawn(VOCABULARY, _HIDDEN),
        "model.norm.weight": np.ones(_HIDDEN, np.float32),
        "lm_head.weight": drawn(VOCABULARY, _HIDDEN),
    }
    for module, sizes in _every_module():
        tensors[f"{module}.weight"] = drawn(*sizes)
        if kind.qkv_bias and module.endswith(("q_proj", "k_proj", "v_proj")):
            tensors[f"{module}.bias"] = drawn(sizes[0])
    for layer in range(_LAYERS):
        of = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{of}.{norm}.weight"] = np.ones(_HIDDEN, np.float32)
        if kind.qk_norm:
            for norm in ("self_attn.q_norm", "self_attn.k_norm"):
                tensors[f"{of}.{norm}.weight"] = np.ones(_HEAD, np.float32)
    config = {
        "model_type": kind.model_type,
        "architectures": [kind.architecture],
        "vocab_size": VOCABULARY,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
