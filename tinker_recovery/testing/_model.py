"""A small real model: a LoRA-factored bigram language model in numpy float32, with AdamW.

Logits for the next token are ``W[x] + A[x] @ B``: W is frozen and derived from the base model's
name, A and B are trained. Losses fall, the optimizer's moments matter, and the same requests give
the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 64
"""Tokens are taken modulo this, so any tokenizer's ids will do."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_NAMES = ("lora_a", "lora_b")


@dataclass(frozen=True, slots=True)
class Datum:
    """One sequence: ``tokens``, ``targets`` and ``weights`` of equal length.

    With several targets for each token, ``targets`` and ``weights`` have a second axis.

    ``loss``, if given, is used instead of the weighted cross-entropy: from the logprobs it makes
    the loss, and the negated gradient by each.
    """

    tokens: Ints
    targets: Ints
    weights: Floats
    loss: Callable[[Floats], tuple[float, Floats]] | None = None


@dataclass(frozen=True, slots=True)
class Adam:
    """Parameters of one optimizer step, named as in ``tinker.types.AdamParams``."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


def _base_weights(base_model: str) -> Floats:
    seed = int.from_bytes(hashlib.sha256(base_model.encode()).digest()[:8], "big")
    drawn = np.random.default_rng(seed).standard_normal((VOCABULARY, VOCABULARY))
    return drawn.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Noise:
    """What a service adds that does not answer the same request alike.

    Attributes:
        answers: Standard deviation of the noise on each logprob answered.
        gradients: Standard deviation of the relative noise on each gradient.
        rng: Draws it.
    """

    answers: float
    gradients: float
    rng: np.random.Generator

    def on(self, values: Floats, deviation: float) -> Floats:
        """Noise of the values' shape."""
        return (self.rng.standard_normal(values.shape) * deviation).astype(np.float32)


class BigramLora:
    """Weights, gradients and optimizer state of one run.

    Args:
        base_model: Determines the frozen weights.
        rank: Rank of the LoRA factors.
        seed: Determines A; B begins at zero.
    """

    def __init__(self, base_model: str, *, rank: int, seed: int) -> None:
        drawn = np.random.default_rng(seed).standard_normal((VOCABULARY, rank))
        self.base = _base_weights(base_model)
        self.weights = {
            "lora_a": (drawn * np.float32(0.1)).astype(np.float32),
            "lora_b": np.zeros((rank, VOCABULARY), np.float32),
        }
        self.first = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.second = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.adam_steps = 0
        self.steps = 0
        """Optimizer steps in the weights, over all the runs they went through."""
        self._gradients = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self._loss_instead: float | None = None
        self._noise: Noise | None = None

    def with_noise(self, noise: Noise | None) -> Self:
        """Itself, from here on with noise."""
        self._noise = noise
        return self

    def report_instead(self, loss: float, *, sticky: bool) -> None:
        """Let the next :meth:`forward` report another loss.

        Args:
            loss: The loss, and, negated, every logprob.
            sticky: Whether the weights become NaN too, and with them every later loss.
        """
        self._loss_instead = loss
        if sticky:
            for weight in self.weights.values():
                weight.fill(np.nan)

    def perturb(self) -> None:
        """Move the weights a little, always by the same amount."""
        rng = np.random.default_rng(1)
        for weight in self.weights.values():
            weight[...] += rng.standard_normal(weight.shape).astype(np.float32) * np.float32(1e-3)

    def forward(self, batch: Sequence[Datum], *, backward: bool) -> tuple[float, list[Floats]]:
        """The loss of a batch, summed, and each datum's logprobs.

        Args:
            batch: The sequences.
            backward: Whether to accumulate gradients for the next :meth:`step`.
        """
        loss = 0.0
        logprobs = []
        a, b = self.weights["lora_a"], self.weights["lora_b"]
        for datum in batch:
            x, y = datum.tokens % VOCABULARY, datum.targets % VOCABULARY
            hidden = a[x]
            logits = self.base[x] + hidden @ b
            logits -= logits.max(axis=1, keepdims=True)
            exponents = np.exp(logits)
            totals = exponents.sum(axis=1, keepdims=True)
            rows = np.arange(len(x)).reshape(-1, *[1] * (y.ndim - 1))
            chosen = (logits - np.log(totals))[rows, y].astype(np.float32)
            if self._noise is not None and self._noise.answers:
                chosen = chosen + self._noise.on(chosen, self._noise.answers)
            logprobs.append(chosen)
            weights = datum.weights
            if datum.loss is None:
                loss -= float((chosen * weights).sum())
            else:
                own, weights = datum.loss(chosen)
                loss += own
            if backward:
                error = exponents / totals
                if y.ndim == 1:
                    error[rows, y] -= np.float32(1)
                    error *= weights[:, None]
                else:
                    error *= weights.sum(axis=1, keepdims=True)
                    np.subtract.at(error, (rows, y), weights)
                of_a, of_b = error @ b.T, hidden.T @ error
                if self._noise is not None and self._noise.gradients:
                    of_a += of_a * self._noise.on(of_a, self._noise.gradients)
                    of_b += of_b * self._noise.on(of_b, self._noise.gradients)
                np.add.at(self._gradients["lora_a"], x, of_a)
                self._gradients["lora_b"] += of_b
        if self._loss_instead is not None:
            loss, self._loss_instead = self._loss_instead, None
            logprobs = [np.full_like(chosen, -loss) for chosen in logprobs]
        return loss, logprobs

    def step(self, adam: Adam) -> None:
        """One AdamW step (Loshchilov & Hutter 2019, algorithm 2) on the accumulated gradients."""
        self.adam_steps += 1
        self.steps += 1
        norm = float(np.sqrt(sum(float((g * g).sum()) for g in self._gradients.values())))
        clip = adam.grad_clip_norm / norm if norm > adam.grad_clip_norm > 0 else 1.0
        correction1 = np.float32(1 - adam.beta1**self.adam_steps)
        correction2 = np.float32(1 - adam.beta2**self.adam_steps)
        rate = np.float32(adam.learning_rate)
        for name, weight in self.weights.items():
            gradient = self._gradients[name] * np.float32(clip)
            first, second = self.first[name], self.second[name]
            first *= np.float32(adam.beta1)
            first += np.float32(1 - adam.beta1) * gradient
            second *= np.float32(adam.beta2)
            second += np.float32(1 - adam.beta2) * gradient * gradient
            scale = np.sqrt(second / correction2) + np.float32(adam.eps)
            decayed = weight * np.float32(1 - adam.learning_rate * adam.weight_decay)
            weight[...] = decayed - rate * (first / correction1) / scale
            self._gradients[name].fill(0)

    def tensors(self) -> dict[str, Floats | Ints]:
        """The contents of a checkpoint, by name."""
        counters = np.array([self.steps, self.adam_steps], np.int64)
        return {
            **self.weights,
            **{f"first.{name}": self.first[name] for name in _NAMES},
            **{f"second.{name}": self.second[name] for name in _NAMES},
            "counters": counters,
        }

    def restore(self, tensors: Mapping[str, NDArray[np.generic]], *, optimizer: bool) -> None:
        """Load a checkpoint; without ``optimizer`` the moments stay at zero.

        Raises:
            KeyError: A tensor is missing.
            ValueError: A tensor has another shape.
        """
        for name, weight in self.weights.items():
            weight[...] = tensors[name]
        counters = tensors["counters"]
        self.steps = int(counters[0])
        if optimizer:
            self.adam_steps = int(counters[1])
            for name in _NAMES:
                self.first[name][...] = tensors[f"first.{name}"]
                self.second[name][...] = tensors[f"second.{name}"]

    def digests(self) -> tuple[str, str]:
        """SHA-256 of the weights, and of the optimizer state."""
        weights = b"".join(self.weights[name].tobytes() for name in _NAMES)
        moments = b"".join(
            moment[name].tobytes() for moment in (self.first, self.second) for name in _NAMES
        )
        optimizer = moments + str(self.adam_steps).encode()
        return hashlib.sha256(weights).hexdigest(), hashlib.sha256(optimizer).hexdigest()
