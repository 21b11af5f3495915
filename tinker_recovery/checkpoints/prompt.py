"""The canary's prompt: which batch is asked, and how to know it again.

An answer belongs to its prompt, so what is stored says by a short digest which that was: answers to
another prompt are not compared with. With ``canary="auto"`` the prompt is not known before the
loop's first batch, of which it is made; later processes find it in the journal, or stored with the
checkpoints. Pure.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from tinker import types

PROMPT_TOKENS = 64
"""The most tokens of a prompt that is made of the loop's first batch."""


def _data(
    values: Sequence[float] | Sequence[int], dtype: Literal["int64", "float32"]
) -> types.TensorData:
    return types.TensorData(data=list(values), dtype=dtype, shape=[len(values)])


def prompt_of(tokens: Sequence[int]) -> list[types.Datum]:
    """A plain cross-entropy datum: each token predicts the next, all weigh the same."""
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(list(tokens[:-1])),
            loss_fn_inputs={
                "target_tokens": _data(tokens[1:], "int64"),
                "weights": _data([1.0] * (len(tokens) - 1), "float32"),
            },
        )
    ]


def has_images(batch: Sequence[types.Datum]) -> bool:
    """Whether a batch holds anything else than text."""
    return any(
        not isinstance(chunk, types.EncodedTextChunk)
        for datum in batch
        for chunk in datum.model_input.chunks
    )


def tokens_of(batch: Sequence[types.Datum]) -> tuple[int, ...]:
    """The tokens for a prompt: those at the beginning of the batch's longest datum.

    Empty where there are none to ask with.
    """
    longest = max(batch, key=lambda datum: datum.model_input.length, default=None)
    if longest is None or has_images(batch) or longest.model_input.length < 2:  # noqa: PLR2004 - one token to predict another
        return ()
    return tuple(longest.model_input.to_ints()[: PROMPT_TOKENS + 1])


def digest_of(batch: Sequence[types.Datum]) -> str:
    """A short digest of a prompt: of its tokens, and of what its loss is computed with."""
    plain = [
        [
            datum.model_input.to_ints(),
            {name: list(each.data) for name, each in sorted(datum.loss_fn_inputs.items())},
        ]
        for datum in batch
    ]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """What is stored of a prompt, with checkpoints and in the journal.

    Attributes:
        digest: Which prompt.
        noise: The largest distance of two answers for the same weights, as far as measured.
        tokens: Of what it is made, if it was made of the loop's first batch; else empty.
    """

    digest: str
    noise: float
    tokens: tuple[int, ...] = ()

    def __str__(self) -> str:
        """As it is stored."""
        tokens = {"tokens": self.tokens} if self.tokens else {}
        said = {"prompt": self.digest, "noise": self.noise, **tokens}
        return json.dumps(said, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The reverse of ``str()``; None for what cannot be read: it counts as not known."""
        try:
            said = json.loads(text)
            noise = float(said["noise"])
            tokens = tuple(int(token) for token in said.get("tokens", ()))
            if not math.isfinite(noise) or noise < 0:
                return None
            return cls(str(said["prompt"]), noise, tokens)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None


class CanaryPrompt:
    """The prompt of one run, as far as it is known by now. Thread-safe: it is set once.

    Args:
        canary: The policy's: a batch, ``"auto"``, or None for no canary.
    """

    def __init__(self, canary: Sequence[types.Datum] | Literal["auto"] | None) -> None:
        self.auto = canary == "auto"
        """Whether it is made of the loop's first batch, and not given by the user."""
        self.batch: list[types.Datum] | None = None
        """What to ask; None while that is not known, and where there is no canary."""
        self.digest = ""
        """Which prompt it is; empty without one."""
        self.tokens: tuple[int, ...] = ()
        """Of what it was made, if of the loop's first batch."""
        self.spent = 0
        """Tokens of asking it where no attempt was under way, for the next one to count."""
        self.lost = 0
        """Attempts in a row in which the service did not answer it, though it answered all else."""
        self.lost_in_all = 0
        """The same, also if it was answered where an attempt was being restored."""
        self.problem: str | None = None
        """Why none can be made, for people; None if one can, or is not wanted."""
        if canary is not None and not isinstance(canary, str):
            self.batch = list(canary)
            self.digest = digest_of(self.batch)

    @property
    def pending(self) -> bool:
        """Whether the next batch of the loop's is to be its source."""
        return self.auto and self.batch is None and self.problem is None

    def make_of(self, tokens: Sequence[int]) -> bool:
        """Make the prompt of these tokens if it is awaited; returns whether it is known since."""
        if not self.pending or len(tokens) < 2:  # noqa: PLR2004 - one token to predict another
            return False
        batch = prompt_of(tokens)
        self.tokens, self.digest, self.batch = tuple(tokens), digest_of(batch), batch
        return True

    def take_spent(self) -> int:
        """What is in :attr:`spent`, for an attempt that counts it from now on."""
        spent, self.spent = self.spent, 0
        return spent

    def drop(self, problem: str) -> None:
        """Have no canary: from now on the run behaves as without one."""
        self.batch, self.digest, self.problem = None, "", problem
