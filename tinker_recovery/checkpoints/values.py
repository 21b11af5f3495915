"""Values as text, exact to the bit: JSON, tuples, bytes, numpy arrays and the SDK's own types.

What comes back is equal to what was given, and of the same types. Only classes that the SDK exports
are ever made from text, so that no text can have another made.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tinker
from pydantic import BaseModel
from tinker import types

from tinker_recovery.errors import UsageError

_TAG = "~"
"""The key that tells an object of ours from a dict of the user's."""

_PLAIN = frozenset({type(None), bool, int, float, str})

_ARRAYS = "biuf"
"""Kinds of numpy arrays that are numbers."""

ALLOWED = (
    "None, booleans, numbers, strings, bytes, lists, tuples, dicts with string keys, arrays of "
    "numbers, and the types of the Tinker SDK"
)


def encode_value(value: object, where: str) -> str:
    """A value as text.

    Args:
        value: The value.
        where: What it is, for the error.

    Raises:
        UsageError: A part of it cannot be encoded; names the part, by key and type.
    """
    try:
        return json.dumps(_encoded(value, where), separators=(",", ":"), ensure_ascii=False)
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deeply, or contains itself") from error


def decode_value(text: str) -> Any:
    """The reverse of :func:`encode_value`.

    Raises:
        ValueError: That did not write it, or one of its types is not in this version of the SDK.
    """
    try:
        return _decoded(json.loads(text))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it cannot be read ({error!r})") from error


def _encoded(value: object, where: str) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list or kind is tuple:
        items: list[Any] = list(value)  # type: ignore[call-overload]  # it is one of the two
        if not set(map(type, items)) <= _PLAIN:  # rollouts are mostly long lists of numbers
            items = [_encoded(item, f"{where}[{index}]") for index, item in enumerate(items)]
        return items if kind is list else {_TAG: "tuple", "of": items}
    if isinstance(value, dict) and kind is dict:
        for key in value:
            if type(key) is not str:
                raise UsageError(
                    f"{where} has the key {key!r}, a {type(key).__name__}: use string keys"
                )
        plain = {key: _encoded(inner, f"{where}[{key!r}]") for key, inner in value.items()}
        return {_TAG: "dict", "of": plain} if _TAG in plain else plain
    if isinstance(value, bytes) and kind is bytes:
        return {_TAG: "bytes", "of": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray) and kind is np.ndarray and value.dtype.kind in _ARRAYS:
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {_TAG: "array", "dtype": value.dtype.str, "shape": list(value.shape), "of": data}
    return _of_the_sdk(value, where)


def _of_the_sdk(value: object, where: str) -> dict[str, Any]:
    kind = type(value)
    if _exported(kind.__name__) is kind:
        if isinstance(value, BaseModel):
            parts = {**dict(value), **(value.model_extra or {})}
            inner = {name: _encoded(each, f"{where}.{name}") for name, each in parts.items()}
            return {_TAG: "model", "type": kind.__name__, "of": inner}
        if dataclasses.is_dataclass(kind):
            fields = {
                field.name: _encoded(getattr(value, field.name), f"{where}.{field.name}")
                for field in dataclasses.fields(kind)
            }
            return {_TAG: "dataclass", "type": kind.__name__, "of": fields}
    raise UsageError(f"{where} is a {kind.__module__}.{kind.__qualname__}; allowed are {ALLOWED}")


def _exported(name: str) -> Any:
    """What the SDK exports by this name."""
    return getattr(types, name, None) or getattr(tinker, name, None)


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        if set(map(type, value)) <= _PLAIN:
            return value
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        if _TAG not in value:
            return {key: _decoded(inner) for key, inner in value.items()}
        return _READERS[value[_TAG]](value)
    return value


def _array(value: Mapping[str, Any]) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(value["of"]), dtype=np.dtype(value["dtype"]))
    return data.reshape(value["shape"]).copy()  # what is not copied cannot be written to


def _model(value: Mapping[str, Any]) -> BaseModel:
    kind = _exported(value["type"])
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        raise ValueError(f"the SDK has no {value['type']}")  # noqa: TRY004 - as for all text that cannot be read
    return kind.model_construct(**_decoded(value["of"]))


def _dataclass(value: Mapping[str, Any]) -> Any:
    kind = _exported(value["type"])
    fields = _decoded(value["of"])
    if not dataclasses.is_dataclass(kind) or not isinstance(kind, type):
        raise ValueError(f"the SDK has no {value['type']}")
    if {field.name for field in dataclasses.fields(kind)} != set(fields):
        raise ValueError(f"the SDK's {value['type']} has other fields by now")
    # Without its __init__, which may convert: the fields are as they were.
    made = object.__new__(kind)
    for name, each in fields.items():
        object.__setattr__(made, name, each)
    return made


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "tuple": lambda value: tuple(_decoded(value["of"])),
    "dict": lambda value: {key: _decoded(inner) for key, inner in value["of"].items()},
    "bytes": lambda value: base64.b64decode(value["of"]),
    "array": _array,
    "model": _model,
    "dataclass": _dataclass,
}
