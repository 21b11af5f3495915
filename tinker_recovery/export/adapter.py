"""A LoRA adapter as a folder: what the service exported, made what ``peft`` loads, or refused.

``peft`` ignores a tensor whose name it does not know, and takes a default for what the config does
not say, so an adapter that it would load without a word could be another model. Hence each name and
each size is checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinker_recovery.errors import ExportRefused
from tinker_recovery.export.durable import write_whole
from tinker_recovery.export.tensors import TensorFile, rename_tensors

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<which>[AB])\.weight")
_OTHER_NAMES = {"base_model.model.model.unembed_tokens.": "base_model.model.lm_head."}
"""What the service calls a module that ``transformers`` calls otherwise."""
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Module:
    """The factors of one module.

    Attributes:
        name: As in the model: ``model.layers.0.self_attn.q_proj``.
        a: Name of the tensor A, of the shape (rank, inputs).
        b: Name of the tensor B, of the shape (outputs, rank).
    """

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in a folder that ``peft`` loads.

    Attributes:
        folder: Where it is.
        config: Its ``adapter_config.json``.
        modules: What it adapts, by name.
    """

    folder: Path
    config: Mapping[str, Any]
    modules: tuple[Module, ...]

    @property
    def base_model(self) -> str:
        """What it was trained on."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def weights(self) -> Path:
        """The file with its tensors."""
        return self.folder / WEIGHTS


def make_loadable(folder: Path, *, base_model: str | None = None) -> Adapter:
    """Make what the service exported into a folder that ``peft`` loads.

    Fills in what follows from the rest (``peft_type``, ``target_modules``, the base model), and
    renames what ``transformers`` calls otherwise. Blocks while it writes.

    Args:
        folder: The files of the export.
        base_model: The run's base model, where the export does not say.

    Raises:
        ExportRefused: It holds what ``peft`` would not load, or would load as another model.
        OSError: A file cannot be read or written.
    """
    config = _config(folder)
    file = TensorFile.read(folder / WEIGHTS)
    renamed = {name: _renamed(name) for name in file.tensors}
    if any(old != new for old, new in renamed.items()):
        rename_tensors(file.path, renamed)
        file = TensorFile.read(file.path)
    modules = _modules(file, config)
    complete = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        **config,
        "target_modules": sorted({each.name.rpartition(".")[2] for each in modules}),
    }
    complete["base_model_name_or_path"] = config.get("base_model_name_or_path") or base_model
    if not complete["base_model_name_or_path"]:
        raise ExportRefused(f"{CONFIG} of the export does not say what the base model is")
    if complete != config:
        # All or nothing: the next try would take half of it for what the service had exported.
        write_whole(folder / CONFIG, json.dumps(complete, indent=2, sort_keys=True) + "\n")
    return Adapter(folder, complete, modules)


def _config(folder: Path) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            there = ", ".join(sorted(each.name for each in folder.iterdir())) or "nothing"
            raise ExportRefused(f"the export has no {name}, which peft needs; it has {there}")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise ExportRefused(f"{CONFIG} of the export is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ExportRefused(f"{CONFIG} of the export is no object")
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float) or config[name] <= 0:
            raise ExportRefused(
                f"{CONFIG} of the export has {name}={config.get(name)!r}: a number above 0 is "
                "needed, or the adapter would be loaded with another strength than it was trained"
            )
    return config


def _renamed(name: str) -> str:
    for old, new in _OTHER_NAMES.items():
        name = name.replace(old, new)
    return name


def _modules(file: TensorFile, config: Mapping[str, Any]) -> tuple[Module, ...]:
    found: dict[str, dict[str, str]] = {}
    others = []
    for name, tensor in file.tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or len(tensor.shape) != 2:  # noqa: PLR2004 - a matrix
            others.append(f"{name} {list(tensor.shape)}")
        else:
            found.setdefault(match["module"], {})[match["which"]] = name
    if others:
        named = ", ".join(others[:_MOST_NAMED])
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        raise ExportRefused(
            f"the export has tensors that peft does not load by these names: {named}{more}. "
            "`tinker checkpoint download` gives its files as they are, and "
            "tinker_cookbook.weights.build_lora_adapter makes an adapter of those of a mixture of "
            "experts"
        )
    if not found:
        raise ExportRefused(f"{WEIGHTS} of the export has no tensor of an adapter")
    modules = []
    for module, names in sorted(found.items()):
        if names.keys() != {"A", "B"}:
            (only,) = names.values()
            raise ExportRefused(f"the export has {only}, and not the other factor of that module")
        a, b = file.tensors[names["A"]].shape, file.tensors[names["B"]].shape
        if not a[0] == b[1] == _rank(config, module):
            raise ExportRefused(
                f"the factors of {module} have the shapes {list(a)} and {list(b)}, which is not "
                f"the rank {_rank(config, module)} that {CONFIG} says"
            )
        modules.append(Module(module, names["A"], names["B"]))
    return tuple(modules)


def _rank(config: Mapping[str, Any], module: str) -> int:
    patterns = config.get("rank_pattern") or {}
    for pattern, rank in patterns.items():
        if module == pattern or module.endswith(f".{pattern}"):
            return int(rank)
    return int(config["r"])
