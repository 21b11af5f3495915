"""Losses that a client computes itself, without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest

from tinker_recovery.testing._model import Floats


class Tensor:
    """As much of PyTorch's as the SDK needs: whoever computes the loss sets ``grad``."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values, np.float32)
        self.grad: Floats | None = None

    def reshape(self, shape: list[int]) -> Tensor:
        return Tensor(self.values.reshape(shape))

    def clone(self) -> Self:
        return self

    detach = clone

    def requires_grad_(self, wanted: bool) -> Self:  # noqa: FBT001 - PyTorch's signature
        del wanted
        return self


@dataclass
class Loss:
    """The value of a loss, and what sets the gradients."""

    value: float
    backward: Callable[[], None]

    def detach(self) -> Floats:
        return np.array(self.value, np.float32)


def squared(data: object, logprobs: list[Tensor]) -> tuple[Loss, dict[str, float]]:
    """The sum of the squared logprobs."""
    del data
    total = float(sum((one.values**2).sum() for one in logprobs))

    def backward() -> None:
        for one in logprobs:
            one.grad = 2 * one.values

    return Loss(total, backward), {"squared": total}


def do_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the SDK take :class:`Tensor` for PyTorch's."""
    monkeypatch.setattr(
        "tinker.lib.public_interfaces.training_client.torch", SimpleNamespace(tensor=Tensor)
    )
