"""How a checkpoint's facts become strings and come back: the service stores nothing else.

Keys carry the prefix ``tinker_recovery.``, so they live beside the user's own. ``format`` is raised
only when a reader that passes over keys it does not know would be misled; a new optional key does
not raise it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tinker_recovery.errors import UsageError

FORMAT = "1"
"""Version of the keys; a reader refuses one it does not know."""

PREFIX = "tinker_recovery."

JSON_LIMIT = 16_384
"""Most bytes of JSON a checkpoint's loop state, and again its metrics, may take.

The service names no limit of its own. This is a position and a seed, not a data set: what is large
is better derived from the step, or kept in a file that the loop state names.
"""


def encode_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics as JSON, exact to the bit; what is not finite is spelled out, as JSON has no NaN.

    Raises:
        UsageError: A value is not a number, or they take more than :data:`JSON_LIMIT` bytes.
    """
    plain: dict[str, float | str] = {}
    for name, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"metric {name!r} is {value!r}: a metric that is stored with a checkpoint has to "
                "be a number"
            ) from error
        plain[str(name)] = number if math.isfinite(number) else str(number)
    return _bounded("metrics", json.dumps(plain, sort_keys=True, separators=(",", ":")))


def decode_metrics(said: str) -> dict[str, float]:
    """What :func:`encode_metrics` wrote.

    Raises:
        ValueError: It is not that.
    """
    plain = json.loads(said)
    if not isinstance(plain, dict):
        raise ValueError(f"metrics are {said[:80]!r}, not a JSON object")  # noqa: TRY004 - one kind of error for all that cannot be read
    return {name: float(value) for name, value in plain.items()}


def encode_loop_state(state: object) -> str:
    """The user's loop state as JSON.

    Tuples come back as lists. Floats that are not finite survive.

    Raises:
        UsageError: It holds something JSON has no word for, a key that is not a string (JSON would
            silently make it one), or takes more than :data:`JSON_LIMIT` bytes.
    """
    _check_plain(state, "loop_state")
    return _bounded("loop_state", json.dumps(state, separators=(",", ":"), ensure_ascii=False))


def decode_loop_state(said: str) -> Any:
    """What :func:`encode_loop_state` wrote; ValueError if it is not JSON."""
    return json.loads(said)


def _check_plain(value: object, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UsageError(
                    f"{where} has the key {key!r}, a {type(key).__name__}: JSON keys are strings, "
                    "and it would come back as one"
                )
            _check_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{where}[{index}]")
    elif not (value is None or isinstance(value, str | int | float)):
        raise UsageError(
            f"{where} is a {type(value).__name__}, which cannot be stored with a checkpoint: use "
            "None, booleans, numbers, strings, lists and dicts with string keys"
        )


def _bounded(field: str, text: str) -> str:
    size = len(text.encode())
    if size > JSON_LIMIT:
        raise UsageError(
            f"{field} takes {size} bytes as JSON, and {JSON_LIMIT} are allowed with a checkpoint: "
            "derive what you can from the step, or keep it in a file and store its name"
        )
    return text


def check_format(said: str) -> None:
    """Refuse metadata this version cannot read.

    Raises:
        ValueError: Says whether an update would help.
    """
    if said == FORMAT:
        return
    if said.isdecimal() and int(said) > int(FORMAT):
        raise ValueError(
            f"format {said!r} is newer than {FORMAT!r}, the newest this version of tinker_recovery "
            "reads: update tinker_recovery to use this checkpoint"
        )
    raise ValueError(f"format {said!r} is not {FORMAT!r}, the one this version knows")
