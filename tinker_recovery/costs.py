"""What a run costs: its tokens by kind and model, and their price by the user's table."""

from __future__ import annotations

import threading
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from tinker_recovery.fields import Frozen, Number

Kind = Literal["trained", "checked", "prompt", "cached", "sampled"]
"""``trained``: forward and backward passes of the loop, and forward passes; each with a loss of the
loop's own counts twice, since the SDK makes two passes of it. ``checked``: forward passes of ours,
for the canary. ``prompt``: prompts that were sampled from, or whose log probabilities were asked
for; ``cached``: those that the service had read before, and each prompt again for every further
sample of one request. ``sampled``: what was generated.

Passes count once they are submitted, samples once they are answered.
"""

KINDS: tuple[Kind, ...] = ("trained", "checked", "prompt", "cached", "sampled")

LOOP: tuple[Kind, ...] = ("trained", "prompt", "cached", "sampled")
"""What the loop asks for, and may have to ask for again."""

ANY_MODEL = "*"
"""In a table of prices: every model that has no line of its own."""

_MARKS = 1000


class Prices(Frozen):
    """What a model costs, in USD for a million tokens.

    Attributes:
        trained: Of a forward and backward pass, or a forward pass.
        prompt: Of a prompt that is sampled from.
        cached: Of a prompt that the service had read before; None for the price of ``prompt``.
        sampled: Of what is sampled.
    """

    trained: Annotated[Number, Field(ge=0)] = 0.0
    prompt: Annotated[Number, Field(ge=0)] = 0.0
    cached: Annotated[Number, Field(ge=0)] | None = None
    sampled: Annotated[Number, Field(ge=0)] = 0.0

    def of(self, kind: Kind) -> float:
        """Of a kind of tokens."""
        match kind:
            case "trained" | "checked":
                return self.trained
            case "prompt":
                return self.prompt
            case "cached":
                return self.prompt if self.cached is None else self.cached
            case "sampled":
                return self.sampled


def _read_table(value: object) -> object:
    if not isinstance(value, (str, Path)):
        return value
    try:
        return tomllib.loads(Path(value).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{str(value)!r} cannot be read ({error.strerror}): name a TOML file with a table for "
            "each model, or give the prices themselves"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(value)!r} is no TOML file: {error}") from error


PriceTable: TypeAlias = Annotated[Mapping[str, Prices], BeforeValidator(_read_table)]
"""Prices by the base model's name, :data:`ANY_MODEL` for all others; or the path of a TOML file
with a table for each: ``["Qwen/Qwen3-8B"]`` and ``trained = 0.44`` below it.
"""


def read_table(file: Path | str) -> Mapping[str, Prices]:
    """The table of a TOML file.

    Raises:
        pydantic.ValidationError: It cannot be read, or has something else than prices.
    """
    return TypeAdapter(PriceTable).validate_python(file)


def table_to_json(prices: Mapping[str, Prices]) -> dict[str, dict[str, float]]:
    """The table, without what is as by default."""
    return {model: each.model_dump(exclude_defaults=True) for model, each in prices.items()}


def table_from_json(plain: Any) -> dict[str, Prices] | None:
    """The reverse; None if there is none, or a later version wrote it."""
    try:
        return TypeAdapter(dict[str, Prices]).validate_python(plain)
    except ValidationError:
        return None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Numbers of tokens.

    Attributes:
        counts: By kind and base model; the model is empty for that of the run itself.
    """

    counts: Mapping[tuple[Kind, str], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.counts.values())

    def of(self, kind: Kind) -> int:
        """Those of one kind, of every model."""
        return sum(number for (each, _), number in self.counts.items() if each == kind)

    def only(self, *kinds: Kind) -> Tokens:
        """Those of some kinds alone."""
        return Tokens({key: number for key, number in self.counts.items() if key[0] in kinds})

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(Counter(self.counts) + Counter(other.counts))

    def __sub__(self, other: Tokens) -> Tokens:
        """What is in these and not in the others; never negative."""
        return Tokens(Counter(self.counts) - Counter(other.counts))

    def to_json(self) -> dict[str, dict[str, int]]:
        """By kind, then by model."""
        plain: dict[str, dict[str, int]] = {}
        for (kind, model), number in self.counts.items():
            plain.setdefault(kind, {})[model] = number
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Tokens:
        """The reverse; what is not understood is left out, since a later version may have it."""
        if not isinstance(plain, Mapping):
            return cls()
        return cls(
            {
                (kind, str(model)): number
                for kind in KINDS
                if isinstance(models := plain.get(kind), Mapping)
                for model, number in models.items()
                if type(number) is int
            }
        )


NO_TOKENS = Tokens()


class Meter:
    """Counts the tokens of one attempt; usable from any thread."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[Kind, str]] = Counter()
        self._marks: list[tuple[int, Tokens]] = []
        self._lock = threading.Lock()

    def add(self, kind: Kind, tokens: int, model: str = "") -> None:
        """Count tokens; the model is empty for that of the run itself."""
        if tokens > 0:
            with self._lock:
                self._counts[kind, model] += tokens

    def mark(self, step: int) -> None:
        """A checkpoint of this step is saved behind what was counted so far."""
        with self._lock:
            self._marks.append((step, Tokens(dict(self._counts))))
            if len(self._marks) > _MARKS:
                del self._marks[-2::-2]  # the newest stays

    def read(self) -> Tokens:
        """All of them."""
        with self._lock:
            return Tokens(dict(self._counts))

    def up_to(self, step: float) -> Tokens:
        """Those that went into the newest checkpoint of this step or an earlier one."""
        with self._lock:
            before = (tokens for at, tokens in reversed(self._marks) if at <= step)
            return next(before, Tokens())


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of a run.

    Attributes:
        tokens: All of them.
        replayed: Those of the loop that went into steps that had to be done again.
    """

    tokens: Tokens
    replayed: Tokens


def usage_of(attempts: Iterable[tuple[Tokens, Tokens]]) -> Usage:
    """The usage of a run, from all tokens of each attempt and those of the part that was kept."""
    total, replayed = Tokens(), Tokens()
    for tokens, kept in attempts:
        total += tokens
        replayed += tokens.only(*LOOP) - kept
    return Usage(total, replayed)


@dataclass(frozen=True, slots=True)
class Bill:
    """What tokens cost.

    Attributes:
        usd: In USD, of those that have a price.
        unpriced: The models without a price that tokens were spent on; empty for the run's own, if
            its name is not known.
    """

    usd: float
    unpriced: tuple[str, ...]


def bill(tokens: Tokens, prices: Mapping[str, Prices], model: str) -> Bill:
    """Price tokens by a table.

    Args:
        tokens: The tokens.
        prices: The table.
        model: The run's own base model; empty if it is not known.
    """
    usd = 0.0
    unpriced: dict[str, None] = {}
    for (kind, given), number in tokens.counts.items():
        name = given or model
        price = prices.get(name, prices.get(ANY_MODEL))
        if price is None:
            unpriced[name] = None
        else:
            usd += price.of(kind) * number / 1e6
    return Bill(usd, tuple(unpriced))


def length_of(*model_inputs: Any) -> int:
    """Tokens of ``types.ModelInput``s; an image without ``expected_tokens`` counts as none."""
    total = 0
    for model_input in model_inputs:
        for chunk in model_input.chunks:
            if (tokens := getattr(chunk, "tokens", None)) is not None:
                total += len(tokens)
            else:
                total += getattr(chunk, "expected_tokens", 0) or 0
    return total


def tokens_in(data: Iterable[Any]) -> int:
    """Tokens of the inputs of ``types.Datum``s."""
    return length_of(*[datum.model_input for datum in data])
