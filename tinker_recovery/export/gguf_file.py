"""An adapter as a GGUF file, for architectures whose LoRA tensors need other names and no more.

What llama.cpp's own converter does to the tensors of an architecture, it does to the factors of a
LoRA as well. For Qwen2 and Qwen3 that is nothing but names. For a Llama it reorders the rows of
``q_proj`` and ``k_proj``, for a mixture of experts it stacks and splits. Those are refused here,
with that converter named, which is run instead where ``TINKER_RECOVERY_LLAMA_CPP`` says where it
is.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from tinker_recovery.errors import ExportRefused, ExportUnavailable
from tinker_recovery.export.adapter import Adapter
from tinker_recovery.export.tensors import StoredTensor, TensorFile

GGUF = "adapter.gguf"
LLAMA_CPP = "TINKER_RECOVERY_LLAMA_CPP"
_SCRIPT = "convert_lora_to_gguf.py"
_LAST_LINES = 5
_NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))

_REORDERED: dict[str, tuple[str, ...]] = {
    "qwen2": (),
    "qwen3": (),
    "llama": ("self_attn.q_proj", "self_attn.k_proj"),
}
"""The architectures known here, each with the modules whose factors need more than names."""

_KNOWN = (
    (re.compile(r"Qwen/Qwen2(\.5)?-(Coder-|Math-)?[\d.]+B(-Instruct)?"), "qwen2"),
    (re.compile(r"Qwen/Qwen3-[\d.]+B(-Base|-Instruct-2507|-Thinking-2507)?"), "qwen3"),
    (re.compile(r"meta-llama/Llama-3[\d.]*-[\d.]+B(-Instruct)?"), "llama"),
)
"""The architectures of models that are known by their names, dense ones alone."""

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_DTYPES = {"F32": "float32", "F16": "float16"}


async def write_gguf(adapter: Adapter, to: Path, *, base: Path | None) -> None:
    """Write an adapter as a GGUF file.

    Args:
        adapter: What to write.
        to: The file.
        base: A folder with the ``config.json`` of the base model; None to go by the model's name.

    Raises:
        ExportRefused: It needs more than names, and no converter is there for it.
    """
    why = _needs_more(adapter, base)
    checkout = os.environ.get(LLAMA_CPP, "")
    if why is None:
        await anyio.to_thread.run_sync(_write, adapter, to, _architecture(adapter, base))
    elif checkout:
        await _convert(Path(checkout), adapter, to, base)
    else:
        raise ExportRefused(
            f"format='gguf': {why}. llama.cpp's {_SCRIPT} converts it: set {LLAMA_CPP} to a "
            "checkout of llama.cpp to have it run, or export format='safetensors' and run it "
            "yourself"
        )


def _architecture(adapter: Adapter, base: Path | None) -> str | None:
    """The architecture as GGUF names it; None if it is not known."""
    if base is not None:
        found = _config_of(base).get("model_type")
        return found if isinstance(found, str) else None
    return next((arch for name, arch in _KNOWN if name.fullmatch(adapter.base_model)), None)


def _config_of(base: Path) -> dict[str, Any]:
    try:
        config = json.loads((base / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ExportRefused(f"{base} has no config.json of a model: {error}") from error
    return config if isinstance(config, dict) else {}


def _needs_more(adapter: Adapter, base: Path | None) -> str | None:
    """Why other names are not enough; None if they are."""
    architecture = _architecture(adapter, base)
    if architecture is None:
        return (
            f"the architecture of {adapter.base_model!r} is not known here (give its config.json "
            "with --base, if you have it)"
        )
    if architecture not in _REORDERED:
        return f"tensors of the architecture {architecture!r} may need more than other names"
    for module in adapter.modules:
        if module.name.endswith(_REORDERED[architecture]):
            return (
                f"{module.name} of the architecture {architecture!r} needs its rows in another "
                "order, not only another name"
            )
        if module.name == "lm_head" and (
            base is None or _config_of(base).get("tie_word_embeddings") is not False
        ):
            return (
                "it adapts lm_head, which a model with tied embeddings has not (give the base "
                "model's config.json with --base, if it has none)"
            )
    if adapter.config.get("use_rslora") or adapter.config.get("alpha_pattern"):
        return "its strength is not lora_alpha / r for every module"
    return None


def _write(adapter: Adapter, to: Path, architecture: str | None) -> None:
    try:
        import gguf  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ExportRefused(
            "format='gguf' needs the package gguf: pip install \"tinker-recovery[gguf]\""
        ) from error

    layers = [int(found[1]) for each in adapter.modules if (found := _LAYER.match(each.name))]
    of_arch = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[str(architecture)]
    names = gguf.get_tensor_name_map(of_arch, max(layers, default=0) + 1)
    file = TensorFile.read(adapter.weights)
    writer = gguf.GGUFWriter(to, str(architecture))
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter.config["lora_alpha"]))
        writer.add_string("general.base_model.0.name", adapter.base_model)
        for module in adapter.modules:
            name = names.get_name(f"{module.name}.weight", try_suffixes=(".weight",))
            if name is None:
                raise ExportRefused(
                    f"format='gguf': {architecture} has no tensor {module.name}, as gguf knows it"
                )
            for suffix, which in (("lora_a", module.a), ("lora_b", module.b)):
                writer.add_tensor(f"{name}.{suffix}", _array(file.path, which, file.tensors[which]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _array(path: Path, name: str, tensor: StoredTensor) -> Any:
    """A tensor as an array that is read from the file when it is written."""
    import numpy as np  # noqa: PLC0415 - only here

    if tensor.dtype == "BF16":
        # Exact: the upper half of a float32.
        halves = np.memmap(path, np.uint16, "r", tensor.begin, tensor.shape)
        return (halves.astype(np.uint32) << 16).view(np.float32)
    if tensor.dtype not in _DTYPES:
        raise ExportRefused(
            f"format='gguf': {name} is {tensor.dtype}, and F32, F16 or BF16 are allowed"
        )
    return np.memmap(path, np.dtype(_DTYPES[tensor.dtype]), "r", tensor.begin, tensor.shape)


async def _convert(checkout: Path, adapter: Adapter, to: Path, base: Path | None) -> None:
    script = checkout / _SCRIPT
    if not script.is_file():
        raise ExportRefused(f"{LLAMA_CPP}={str(checkout)!r} is not allowed: it has no {_SCRIPT}")
    given = [] if base is None else ["--base", str(base)]
    done = await anyio.run_process(
        [
            sys.executable,
            str(script),
            "--outtype",
            "f32",
            "--outfile",
            str(to),
            *given,
            str(adapter.folder),
        ],
        check=False,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        # Killed, as by a system short of memory, or without room: that may pass.
        passes = done.returncode < 0 or any(word in line for word in _NO_ROOM for line in said)
        raise (ExportUnavailable if passes else ExportRefused)(
            f"{script} ended with status {done.returncode}: {' / '.join(said) or 'no word'}"
        )
