"""Sampling from the small model: a table of logprobs, drawn from token by token.

In a bigram model the next token depends on the last one alone, so all it can answer is in one table
of logprobs, which is computed once for the weights. The same weights, prompt, seed and index give
the same tokens, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tinker.proto import tinker_public_pb2 as pb

from tinker_recovery.testing._model import VOCABULARY, BigramLora, Floats, Ints

END = VOCABULARY - 1
"""The token that ends a text, if ``stop`` is not given."""

MOST_TOKENS = 1024
"""Tokens of a sample, if ``max_tokens`` is not given."""

_MASKED = -99999.0


@dataclass(slots=True)
class Weights:
    """What samples are drawn from.

    Attributes:
        table: The logprob of each token (column) after each token (row).
        steps: Optimizer steps in them.
    """

    table: Floats
    steps: int

    @classmethod
    def of(cls, model: BigramLora) -> Weights:
        """Those of a model as it is now."""
        logits = model.base + model.weights["lora_a"] @ model.weights["lora_b"]
        logits -= logits.max(axis=1, keepdims=True)
        table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return cls(table.astype(np.float32), model.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How a sample is drawn, as in ``tinker.types.SamplingParams``.

    Attributes:
        max_tokens: The most tokens.
        temperature: 0 takes the likeliest token.
        top_k: How many of the likeliest tokens may be drawn; below 1 for all.
        top_p: The least probability of those that may be drawn, likeliest first.
        stops: Sequences of tokens that end it, and are part of it.

    Raises:
        ValueError: A field is out of its range.
    """

    max_tokens: int = MOST_TOKENS
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    stops: tuple[tuple[int, ...], ...] = ((END,),)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens!r} is not allowed: 1 or more")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature!r} is not allowed: 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p!r} is not allowed: more than 0, at most 1")

    def next(self, logprobs: Floats, rng: np.random.Generator) -> int:
        """One token, drawn by the logprobs of all."""
        order = np.argsort(-logprobs, kind="stable")
        if self.temperature == 0:
            return int(order[0])
        scaled = logprobs[order].astype(np.float64) / self.temperature
        odds = np.exp(scaled - scaled[0])
        if self.top_k > 0:
            odds = odds[: self.top_k]
        reached = np.cumsum(odds / odds.sum())
        # The token that reaches top_p may be drawn too.
        reached = reached[: int(np.searchsorted(reached, self.top_p)) + 1]
        at = int(np.searchsorted(reached, rng.random() * reached[-1], side="right"))
        return int(order[min(at, len(reached) - 1)])

    def sample(
        self, weights: Weights, prompt: Ints, rng: np.random.Generator
    ) -> tuple[list[int], list[int], bool]:
        """The tokens of one sample, the token before each, and whether a stop ended it."""
        last = int(prompt[-1])
        tokens: list[int] = []
        before: list[int] = []
        while len(tokens) < self.max_tokens:
            before.append(last)
            last = self.next(weights.table[last], rng)
            tokens.append(last)
            if any(tuple(tokens[-len(stop) :]) == stop for stop in self.stops):
                return tokens, before, True
        return tokens, before, False


def rng_of(seed: int, *what: int) -> np.random.Generator:
    """The random numbers of one sample."""
    return np.random.default_rng([seed % 2**63, *what])


def topk(
    table: Floats, before: Sequence[int] | Ints, k: int, *, skipped: int = 0
) -> pb.TopkLogprobs:
    """The likeliest ``k`` tokens after each token, below ``skipped`` empty rows."""
    rows = table[np.asarray(before, np.int64)]
    order = np.argsort(-rows, axis=1, kind="stable")[:, :k]
    ids = np.zeros((skipped + len(rows), k), np.int32)
    logprobs = np.full(ids.shape, _MASKED, np.float32)
    ids[skipped:, : order.shape[1]] = order
    logprobs[skipped:, : order.shape[1]] = np.take_along_axis(rows, order, axis=1)
    return pb.TopkLogprobs(
        token_ids=ids.tobytes(), logprobs=logprobs.tobytes(), k=k, length=len(ids)
    )


def prompt_logprobs(table: Floats, prompt: Ints, last_n: int | None) -> Floats:
    """The logprob of each token of a prompt; NaN for the first, and before the ``last_n``."""
    found = np.full(len(prompt), np.nan, np.float32)
    found[1:] = table[prompt[:-1], prompt[1:]]
    if last_n is not None:
        found[: len(prompt) - last_n] = np.nan
    return found


def logprobs_of(table: Floats, before: NDArray[np.int64], tokens: NDArray[np.int64]) -> Floats:
    """The logprob of each token after the one before it; 0 for a token of -1."""
    found: Floats = table[before, tokens % VOCABULARY]
    return np.where(tokens < 0, np.float32(0), found)
