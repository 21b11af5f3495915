"""Settings, for the site: each field of the models with its default, unit, limits and variable."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from site_docstrings import to_markdown

WHEN = Path(__file__).parents[1] / "docs" / "when.toml"
"""When to change each setting, by model and field; and the unit, where the name does not say it."""

MODELS = {
    "RecoveryPolicy": "tinker_recovery.policy",
    "CheckpointPolicy": "tinker_recovery.checkpoint_policy",
    "RetryPolicy": "tinker_recovery.jobs.retry",
    "Prices": "tinker_recovery.costs",
}

OF_SETTINGS = frozenset({"RecoveryPolicy", "CheckpointPolicy"})
"""Those whose fields may stand in a file, or in variables."""

_UNITS = {"_s": "s", "_ms": "ms", "_bytes": "bytes", "_per_s": "per second"}
_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "`True` or `False`",
    "string": "a text",
    "null": "`None`",
}
_LIMITS = {
    "at least {}": ("minimum", "ge"),
    "above {}": ("exclusiveMinimum", "gt"),
    "at most {}": ("maximum", "le"),
    "below {}": ("exclusiveMaximum", "lt"),
}


def attributes(documented: type) -> dict[str, str]:
    """The lines of a docstring's ``Attributes`` section, by name."""
    found: dict[str, list[str]] = {}
    text = inspect.cleandoc(documented.__doc__ or "")
    _, _, section = text.partition("Attributes:\n")
    name = ""
    for line in section.splitlines():
        begins = re.match(r" {4}(\w+): ?(.*)", line)
        if begins:
            name = begins[1]
            found[name] = [begins[2]]
        elif name and line.startswith(" " * 8):
            found[name].append(line.strip())
        elif line.strip():
            break
    return {name: to_markdown(" ".join(lines)) for name, lines in found.items()}


@cache
def when_to_change() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """By model and field: when to change it, and its unit."""
    return tomllib.loads(WHEN.read_text(encoding="utf-8"))


def unit_of(model: str, name: str) -> str:
    """The unit of a number; empty for what is none."""
    given = when_to_change()[model].get(name, {}).get("unit")
    if given is not None:
        return given
    # The longest suffix counts: `_per_s` before `_s`.
    ends = sorted((end for end in _UNITS if name.endswith(end)), key=len)
    return _UNITS[ends[-1]] if ends else ""


def is_number(field: FieldInfo) -> bool:
    """Whether a setting takes a number, and so has a unit."""
    schema = _schema(field)
    kinds = [schema, *schema.get("anyOf", [])]
    return any(each.get("type") in {"integer", "number"} for each in kinds)


def _schema(field: FieldInfo) -> Mapping[str, Any]:
    # A field's type and its limits, put together again.
    kind: Any = field.annotation
    for each in field.metadata:
        kind = Annotated[kind, each]
    try:
        return TypeAdapter(kind).json_schema()
    except PydanticInvalidForJsonSchema:
        return {}


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a setting takes, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_allowed, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value!r}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return f"several of: {_allowed(schema.get('items', {}))}"
    if kind not in _KINDS:
        return "given in Python"
    # Behind a validator pydantic leaves a limit by its own name.
    said = [
        text.format(_figure(schema[key]))
        for text, keys in _LIMITS.items()
        for key in keys
        if key in schema
    ]
    return f"{_KINDS[kind]}, {' and '.join(said)}" if said else _KINDS[kind]


def _figure(value: float) -> str:
    return f"{value:,.15g}"


def _default(field: FieldInfo, unit: str) -> str:
    value = field.default
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return f"`{type(value).__name__}()`" if isinstance(value, BaseModel) else "none"
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return f"`{value!r}`"
    if isinstance(value, tuple):
        return f"`{value!r}`"
    return f"{_figure(value)} {unit}".strip() + _in_words(value, unit)


def _in_words(value: float, unit: str) -> str:
    """A large number in a unit that says more."""
    larger = {
        "s": ((86_400, "day"), (3600, "h"), (60, "min")),
        "ms": ((60_000, "min"), (1000, "s")),
        "bytes": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")),
    }.get(unit, ())
    for size, name in larger:
        if value >= size and value % size == 0:
            return f" ({value / size:g} {name})"
    return ""


def settings(model_name: str) -> str:
    """Every field of a model: its default, unit, limits, variable, and when to change it."""
    from tinker_recovery.policy_settings import SETTINGS  # noqa: PLC0415 - as a command would

    model = getattr(importlib.import_module(MODELS[model_name]), model_name)
    described, when = attributes(model), when_to_change()[model_name]
    prefix = "checkpoints." if model_name == "CheckpointPolicy" else ""
    from_text = SETTINGS if model_name in OF_SETTINGS else {}
    overview = ["| setting | default |", "|---|---|"]
    sections: list[str] = []
    for name, field in model.model_fields.items():
        unit, anchor = unit_of(model_name, name), f"{model_name}.{name}".lower()
        default = _default(field, unit)
        overview.append(f"| [`{name}`](#{anchor}) | {default} |")
        schema = _schema(field)
        facts = [f"Default: {default}"]
        if schema:
            facts.append(f"allowed: {_allowed(schema)}")
        setting = from_text.get(prefix + name)
        if setting is not None:
            facts.append(f"in a file `{setting.name}`, as a variable `{setting.variable}`")
        elif model_name in OF_SETTINGS:
            facts.append("given in Python alone")
        sections += [
            f"### `{name}` {{ #{anchor} }}",
            "",
            "; ".join(facts) + ".",
            "{ .setting }",
            "",
            described[name],
            "",
            f"**Change it** {when[name]['when']}",
            "",
        ]
    return "\n".join([*overview, "", *sections])
