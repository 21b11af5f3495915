"""Small datasets for the cookbook's recipes, and its recipes run on the local server."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chz
import tinker
import tqdm
from tinker import types
from tinker_cookbook import tokenizer_utils
from tinker_cookbook.distillation import datasets as distillation_datasets
from tinker_cookbook.distillation import train_off_policy, train_on_policy
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.rl import train as rl_train
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, RLDatasetBuilder, StepResult
from tinker_cookbook.supervised import train as sl_train
from tinker_cookbook.supervised.types import (
    ChatDatasetBuilder,
    SupervisedDataset,
    SupervisedDatasetBuilder,
)

from tinker_recovery.testing import LocalTinker
from tinker_recovery.testing._tokenizer import LocalTokenizer

MODEL = "test/model"
BATCHES, EPOCHS = 8, 2
STEPS = BATCHES * EPOCHS
RL_STEPS = 10

tqdm.tqdm.monitor_interval = 0  # its thread never ends
tokenizer_utils.register_tokenizer(MODEL, LocalTokenizer)


def datum(seed: int) -> types.Datum:
    """One example, a function of the seed alone."""
    tokens = [(seed * 7 + offset * offset) % 50 for offset in range(9)]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[8]),
            "weights": types.TensorData(data=[1.0] * 8, dtype="float32", shape=[8]),
        },
    )


class Examples(SupervisedDataset):
    """Pairs of examples, which DPO takes for chosen and rejected."""

    def __init__(self) -> None:
        self._epoch = 0

    def set_epoch(self, seed: int = 0) -> None:
        self._epoch = seed

    def get_batch(self, index: int) -> list[types.Datum]:
        return [datum(1000 * self._epoch + 2 * index + each) for each in range(2)]

    def __len__(self) -> int:
        return BATCHES


@chz.chz
class ExamplesBuilder(SupervisedDatasetBuilder):
    def __call__(self) -> tuple[SupervisedDataset, None]:
        return Examples(), None


@chz.chz
class PairsBuilder(ChatDatasetBuilder):
    common_config: Any = None

    def __call__(self) -> tuple[SupervisedDataset, None]:
        return Examples(), None


class EvenTokens(Env):
    """Rewards even tokens; each of a group has a prompt of its own, so that order is nothing."""

    def __init__(self, seed: int) -> None:
        self._prompt = [(seed // 7**place) % 50 for place in range(4)]

    async def initial_observation(self) -> tuple[types.ModelInput, list[str]]:
        return types.ModelInput.from_ints(self._prompt), []

    async def step(self, action: list[int], *, extra: object = None) -> StepResult:
        del extra
        return StepResult(
            reward=sum(token % 2 == 0 for token in action) / max(1, len(action)),
            episode_done=True,
            next_observation=types.ModelInput.from_ints([]),
            next_stop_condition=[],
        )


@dataclass(frozen=True)
class EvenTokensGroup(EnvGroupBuilder):
    seed: int

    async def make_envs(self) -> Sequence[Env]:
        return [EvenTokens(3 * self.seed + each) for each in range(3)]


class Prompts(RLDataset):
    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        return [EvenTokensGroup(2 * index + each) for each in range(2)]

    def __len__(self) -> int:
        return RL_STEPS


@chz.chz
class PromptsBuilder(RLDatasetBuilder):
    async def __call__(self) -> tuple[RLDataset, None]:
        return Prompts(), None


def supervised(folder: Path, **changes: Any) -> sl_train.Config:
    given: dict[str, Any] = {
        "log_path": str(folder),
        "model_name": MODEL,
        "recipe_name": "test",
        "dataset_builder": ExamplesBuilder(),
        "num_epochs": EPOCHS,
        "lora_rank": 8,
        "eval_every": 0,
        "save_every": 5,
    }
    return sl_train.Config(**(given | changes))


def dpo(folder: Path, **changes: Any) -> train_dpo.Config:
    given: dict[str, Any] = {
        "log_path": str(folder),
        "model_name": MODEL,
        "recipe_name": "test",
        "dataset_builder": PairsBuilder(),
        "num_epochs": EPOCHS,
        "lora_rank": 8,
        "eval_every": 0,
        "save_every": 5,
        "learning_rate": 1e-2,
    }
    return train_dpo.Config(**(given | changes))


def rl(folder: Path, **changes: Any) -> rl_train.Config:
    given: dict[str, Any] = {
        "log_path": str(folder),
        "model_name": MODEL,
        "recipe_name": "test",
        "dataset_builder": PromptsBuilder(),
        "learning_rate": 1e-2,
        "max_tokens": 6,
        "lora_rank": 8,
        "eval_every": 0,
        "save_every": 4,
    }
    return rl_train.Config(**(given | changes))


def off_policy(folder: Path, **changes: Any) -> train_off_policy.Config:
    teacher = distillation_datasets.TeacherConfig(base_model="teacher/model")
    dataset = train_off_policy.DatasetWithTeacher(
        dataset_builder=ExamplesBuilder(), teacher_config=teacher
    )
    given: dict[str, Any] = {
        "log_path": str(folder),
        "model_name": MODEL,
        "recipe_name": "test",
        "dataset_configs": [dataset],
        "learning_rate": 1e-2,
        "lora_rank": 8,
        "eval_every": 0,
        "save_every": 4,
        "batch_size": 2,
        "n_teacher_targets": 4,
        "renderer_name": "role_colon",
    }
    return train_off_policy.Config(**(given | changes))


def on_policy(folder: Path, **changes: Any) -> train_on_policy.Config:
    teacher = distillation_datasets.TeacherConfig(base_model="teacher/model")
    dataset = distillation_datasets.DistillationDatasetConfig(
        dataset_builder=PromptsBuilder(), teacher_config=teacher, groups_per_batch=2
    )
    given: dict[str, Any] = {
        "log_path": str(folder),
        "model_name": MODEL,
        "recipe_name": "test",
        "dataset_configs": [dataset],
        "learning_rate": 1e-2,
        "max_tokens": 6,
        "lora_rank": 8,
        "eval_every": 0,
        "save_every": 4,
    }
    return train_on_policy.Config(**(given | changes))


RECIPES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "supervised": (sl_train.main, supervised),
    "rl": (rl_train.main, rl),
    "dpo": (train_dpo.main, dpo),
    "off_policy": (train_off_policy.main, off_policy),
    "on_policy": (train_on_policy.main, on_policy),
}


def use(local: LocalTinker) -> None:
    """Have clients be of this server."""
    os.environ.update(
        TINKER_BASE_URL=local.base_url, TINKER_API_KEY=local.api_key, TINKER_TELEMETRY="0"
    )


def steps_logged(folder: Path) -> Counter[int]:
    """How often each step stands in the metrics."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return Counter(row["step"] for row in rows if "step" in row)


def records(folder: Path) -> list[dict[str, Any]]:
    """The recipe's records of its checkpoints."""
    return [json.loads(line) for line in (folder / "checkpoints.jsonl").read_text().splitlines()]


__all__ = ["RECIPES", "STEPS", "tinker"]
