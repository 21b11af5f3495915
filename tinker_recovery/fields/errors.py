"""What pydantic refuses of a policy, in words that say what was meant.

For a field that is not known: the one of a similar name, the policy that has it, and all names that
are allowed. For a field that takes one of several kinds of values: one error instead of one each.
All other errors stay as pydantic has them. The value of a field that is not known is not shown if
the field's name is that of a secret, such as ``api_key``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ErrorType

_KNOWN = frozenset(get_args(ErrorType))
_UNKNOWN_FIELD = "unknown_field"
_NONE_OF_THESE = "none_of_these"
_SECRET = re.compile("auth|credential|key|pass|secret|token", re.IGNORECASE)
_HIDDEN = "***"
_SHORT = 40
"""Characters of a value that is repeated in an example."""


def in_words(
    error: ValidationError, model: type[BaseModel], kin: Sequence[type[BaseModel]]
) -> ValidationError:
    """The errors of a model's own fields in words; those of models inside it are theirs.

    Args:
        error: What pydantic says.
        model: Whose fields they are.
        kin: The models that may hold it, or be held by it.

    Returns:
        A ValidationError with one error for each field.
    """
    found: list[InitErrorDetails] = []
    by_field: dict[str, list[ErrorDetails]] = {}
    for each in error.errors(include_url=False):
        field = str(each["loc"][0]) if each["loc"] else ""
        if each["type"] == "extra_forbidden" and len(each["loc"]) == 1:
            if _SECRET.search(field):
                each["input"] = _HIDDEN
            found.append(_error(_UNKNOWN_FIELD, _unknown(field, each["input"], model, kin), each))
        elif len(each["loc"]) > 1 and _is_union(model, field):
            by_field.setdefault(field, []).append(each)
        else:
            found.append(_as_it_is(each))
    found += [_one(model, field, several) for field, several in by_field.items()]
    return ValidationError.from_exception_data(error.title, found)


def _error(kind: str, said: str, each: ErrorDetails) -> InitErrorDetails:
    # The words are an argument: a brace in them is no placeholder.
    why = PydanticCustomError(kind, "{said}", {"said": said})
    return {"type": why, "loc": each["loc"][:1], "input": each["input"]}


def _as_it_is(each: ErrorDetails) -> InitErrorDetails:
    kind: Any = each["type"]
    if kind not in _KNOWN:
        kind = PydanticCustomError(kind, "{said}", {**each.get("ctx", {}), "said": each["msg"]})
    return {
        "type": kind,
        "loc": each["loc"],
        "input": each["input"],
        "ctx": each.get("ctx", {}),
    }


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()


def _is_union(model: type[BaseModel], field: str) -> bool:
    """Whether pydantic has one error for each kind of value that the field takes."""
    if field not in model.model_fields:
        return False
    return len(set(_choices(model.model_fields[field].annotation)) - {NoneType}) > 1


def _one(model: type[BaseModel], field: str, several: Sequence[ErrorDetails]) -> InitErrorDetails:
    """One error of all those that a value has met."""
    allowed = list(dict.fromkeys(each["msg"].removeprefix("Input should be ") for each in several))
    if NoneType in _choices(model.model_fields[field].annotation):
        allowed.append("None")
    whole = min(several, key=lambda each: len(each["loc"]))
    return _error(_NONE_OF_THESE, f"Input should be {', or '.join(allowed)}", whole)


def _unknown(
    name: str, value: object, model: type[BaseModel], kin: Iterable[type[BaseModel]]
) -> str:
    """Why a name is no field, and what may have been meant."""
    homes = [(model, ""), *_homes(model, kin)]
    meant = ""
    for similar in (_same, _nearest):
        for home, example in homes:
            field = similar(name, home)
            if field and not meant:
                shown = repr(value) if len(repr(value)) <= _SHORT else "..."
                placed = example.format(f"{field}={shown}") if example else ""
                meant = _meant(name, field, home, placed)
    allowed = ", ".join(model.model_fields)
    return f"{name} is no field of {model.__name__}{meant or '.'} Allowed are {allowed}"


def _meant(name: str, field: str, home: type[BaseModel], example: str) -> str:
    if not example:
        return f": did you mean {field}?"
    if name == field:
        return f", but of {home.__name__}: {example}."
    return f": did you mean {field} of {home.__name__}, {example}?"


def _homes(
    model: type[BaseModel], kin: Iterable[type[BaseModel]]
) -> Iterator[tuple[type[BaseModel], str]]:
    """Models that hold this one or are held by it, with how a field of theirs is given."""
    for other in kin:
        for name in _held(model, other):
            yield other, f"{model.__name__}({name}={other.__name__}({{}}))"
        for name in _held(other, model):
            yield other, f"{other.__name__}({{}}, {name}={model.__name__}(...))"


def _held(outer: type[BaseModel], inner: type[BaseModel]) -> list[str]:
    return [name for name, field in outer.model_fields.items() if field.annotation is inner]


def _same(name: str, model: type[BaseModel]) -> str | None:
    """The field of this name, but for its case or its unit."""
    plain = name.lower().removesuffix("_s")
    return next((each for each in model.model_fields if each.removesuffix("_s") == plain), None)


def _nearest(name: str, model: type[BaseModel]) -> str | None:
    near = difflib.get_close_matches(name.lower(), model.model_fields, n=1, cutoff=0.7)
    return near[0] if near else None
