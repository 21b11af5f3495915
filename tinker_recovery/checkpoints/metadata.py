"""Encoding of checkpoint metadata: the service stores strings alone.

Keys have the prefix ``tinker_recovery.``, beside the user's own. ``format`` is raised only when a
reader that ignores unknown keys would be misled; a new optional key does not raise it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from pydantic_core import from_json

from tinker_recovery.errors import UsageError

FORMAT = "1"
"""Version of the keys; a reader refuses any other."""

PREFIX = "tinker_recovery."

STATE_MISSING = "state_missing"
"""Never stored: what a name says of a save whose loop state or epochs are not at hand."""

JSON_LIMIT = 16_384
"""Most bytes of JSON for a checkpoint's loop state, and the same again for its metrics.

The service documents no limit. A loop state is a position and a seed, not a data set.
"""


def number_of(value: object) -> float | None:
    """A number of any kind: Python's own, Decimal, a scalar of numpy or torch, an array of one.

    None for what is no number: text, None, several numbers, an integer beyond a float.
    """
    if isinstance(value, str | bytes | bytearray):
        return None
    try:
        item = getattr(value, "item", None)
        return float(item() if callable(item) else value)  # type: ignore[arg-type]  # what has no float raises
    except Exception:  # noqa: BLE001 - whatever a foreign type raises, it is no number
        return None


def fitting(metrics: Mapping[str, float], first: str) -> tuple[dict[str, float], list[str]]:
    """As many metrics as :data:`JSON_LIMIT` allows, in their order, and the names of the others.

    Args:
        metrics: By name.
        first: The one that is never left out, if it is there.
    """
    kept: dict[str, float] = {}
    left_out: list[str] = []
    size = len("{}")
    for name in sorted(metrics, key=lambda name: name != first):
        size += len(encode_metrics({name: metrics[name]})) - len("{}") + len(",")
        if size <= JSON_LIMIT:
            kept[name] = metrics[name]
        else:
            size = JSON_LIMIT  # so that nothing behind it is stored
            left_out.append(name)
    return kept, left_out


def encode_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics as JSON, exact to the bit; NaN and infinities, which JSON lacks, as strings.

    Raises:
        UsageError: A value is not a number, or the JSON exceeds :data:`JSON_LIMIT` bytes.
    """
    plain: dict[str, float | str] = {}
    for name, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"metric {name!r} is {value!r}: metrics stored with a checkpoint must be numbers"
            ) from error
        plain[str(name)] = number if math.isfinite(number) else str(number)
    return _bounded("metrics", json.dumps(plain, sort_keys=True, separators=(",", ":")))


def decode_metrics(text: str) -> dict[str, float]:
    """The reverse of :func:`encode_metrics`; ValueError or TypeError if that did not write it."""
    plain = from_json(text)
    if not isinstance(plain, dict):
        raise ValueError(f"metrics are {text[:80]!r}, not a JSON object")  # noqa: TRY004 - one kind of error for all that cannot be read
    return {name: float(value) for name, value in plain.items()}


def encode_loop_state(state: object) -> str:
    """The user's loop state as JSON, as Python writes it: NaN and infinities survive.

    Tuples come back as lists.

    Raises:
        UsageError: It holds a value that JSON cannot represent or a key that is not a string, or
            exceeds :data:`JSON_LIMIT` bytes.
    """
    check_plain(state, "loop_state")
    return _bounded("loop_state", json.dumps(state, separators=(",", ":"), ensure_ascii=False))


def check_plain(value: object, where: str) -> None:
    """Raise UsageError, naming ``where`` in it, unless JSON can represent a value as it is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UsageError(
                    f"{where} has the key {key!r}, a {type(key).__name__}: JSON would turn it into "
                    "a string; use string keys"
                )
            check_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            check_plain(inner, f"{where}[{index}]")
    elif not (value is None or isinstance(value, str | int | float)):
        raise UsageError(
            f"{where} is a {type(value).__name__}, which cannot be stored with a checkpoint: use "
            "None, booleans, numbers, strings, lists and dicts with string keys"
        )


def _bounded(field: str, text: str) -> str:
    size = len(text.encode())
    if size > JSON_LIMIT:
        raise UsageError(
            f"{field} takes {size} bytes as JSON; a checkpoint may store {JSON_LIMIT}: derive what "
            "you can from the step, or write it to a file and store the file's name"
        )
    return text


def check_format(version: str) -> None:
    """Raise ValueError for metadata this version cannot read, and say whether to update."""
    if version == FORMAT:
        return
    if version.isdecimal() and int(version) > int(FORMAT):
        raise ValueError(
            f"format {version!r} is newer than {FORMAT!r}, the newest this version of "
            "tinker_recovery reads: update tinker_recovery to use this checkpoint"
        )
    raise ValueError(f"format {version!r} is not {FORMAT!r}, the one this version knows")
