"""What the site's pages take from the code: settings, errors, faults, commands, names.

Each function gives Markdown. A page asks for one with a comment, ``<!-- generated: settings
RecoveryPolicy -->``, and ``site_hook`` puts it there when the site is built, so nothing generated is
kept, and nothing is out of date.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from site_docstrings import to_markdown

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinker_recovery"
WHEN = ROOT / "docs" / "when.toml"
"""When to change each setting, by model and field; and the unit, where the name does not say it."""

MODELS = {
    "RecoveryPolicy": "tinker_recovery.policy",
    "CheckpointPolicy": "tinker_recovery.checkpoint_policy",
    "RetryPolicy": "tinker_recovery.jobs.retry",
}

_UNITS = {"_s": "s", "_ms": "ms", "_bytes": "bytes", "_per_s": "per second"}
_KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}


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


def _allowed(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_allowed(each, definitions) for each in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value!r}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']!r}`"
    match schema.get("type"):
        case "null":
            return "`None`"
        case "array":
            return f"several of: {_allowed(schema.get('items', {}), definitions)}"
        case "string":
            return "a text"
        case "integer" | "number" | "boolean" as kind:
            limits = {
                "at least {}": ("minimum", "ge"),
                "above {}": ("exclusiveMinimum", "gt"),
                "at most {}": ("maximum", "le"),
                "below {}": ("exclusiveMaximum", "lt"),
            }
            # Behind a validator pydantic leaves a limit by its own name.
            said = [
                text.format(_figure(schema[key]))
                for text, keys in limits.items()
                for key in keys
                if key in schema
            ]
            kind_in_words = _KINDS[str(kind)]
            return f"{kind_in_words}, {' and '.join(said)}" if said else kind_in_words
    return "given in Python"


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
    from_text = {} if model_name == "RetryPolicy" else SETTINGS
    overview = ["| setting | default |", "|---|---|"]
    sections: list[str] = []
    for name, field in model.model_fields.items():
        unit, anchor = unit_of(model_name, name), f"{model_name}.{name}".lower()
        default = _default(field, unit)
        overview.append(f"| [`{name}`](#{anchor}) | {default} |")
        schema = _schema(field)
        facts = [f"Default: {default}"]
        if schema:
            facts.append(f"allowed: {_allowed(schema, schema.get('$defs', {}))}")
        setting = from_text.get(prefix + name)
        if setting is not None:
            facts.append(f"in a file `{setting.name}`, as a variable `{setting.variable}`")
        elif model_name != "RetryPolicy":
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


# Errors


@cache
def _trees() -> Mapping[Path, ast.Module]:
    return {
        file: ast.parse(file.read_text(encoding="utf-8"))
        for file in sorted(PACKAGE.rglob("*.py"))
        if "testing" not in file.parts
    }


def _template(node: ast.expr) -> str | None:
    """A message as it is written in the code, with what varies in angle quotes."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_template(part) or "" for part in parts)
        case ast.FormattedValue(value=value):
            return f"‹{_what(value)}›"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            both = _template(left), _template(right)
            return None if None in both else f"{both[0]}{both[1]}"
    return None


def _what(value: ast.expr) -> str:
    """A word for what varies."""
    names = [each.attr for each in ast.walk(value) if isinstance(each, ast.Attribute)]
    names += [each.id for each in ast.walk(value) if isinstance(each, ast.Name)]
    plain = [name for name in names if name not in {"self", "join", "repr", "str", "map", "len"}]
    return plain[0].strip("_").replace("_", " ") if plain else "…"


def texts(error: str) -> list[str]:
    """The messages that this error is made with, wherever that is, in the order of the files."""
    found: list[str] = []
    for tree in _trees().values():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name == error:
                    found.append(_template(first) or "")
                case ast.ClassDef(name=name) if name == error:
                    found += _own_text(node)
    return list(dict.fromkeys(text for text in found if re.search(r"\w{3}.*\s", text)))


def _own_text(node: ast.ClassDef) -> Iterator[str]:
    """What a class itself makes of its arguments."""
    for each in ast.walk(node):
        match each:
            case ast.Call(func=ast.Attribute(attr="__init__"), args=[first, *_]):
                yield _template(first) or ""


def refused_values() -> list[str]:
    """What a model says of a value that it refuses (pydantic's ``ValidationError``)."""
    found = []
    for file in ("policy.py", "checkpoint_policy.py", "costs.py", "jobs/retry.py"):
        for node in ast.walk(_trees()[PACKAGE / file]):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id="ValueError"), args=[first, *_])):
                    found.append(_template(first) or "")
    return list(dict.fromkeys(filter(None, found)))


def public_errors() -> dict[str, type[BaseException]]:
    """Every error class that a user can meet, by name."""
    errors = importlib.import_module("tinker_recovery.errors")
    tree = importlib.import_module("tinker_recovery.supervision")
    found = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    for name in tree.__all__:
        value = getattr(tree, name)
        if inspect.isclass(value) and issubclass(value, BaseException):
            found[name] = value
    return found


def _details(summary: str, said: list[str]) -> str:
    if not said:
        return ""
    lines = "\n".join(re.sub(r"\s+", " ", text) for text in said)
    return f'\n??? quote "{summary}"\n' + textwrap.indent(f"```text\n{lines}\n```\n", " " * 4)


def error(name: str) -> str:
    """What a class is, what it carries, and the texts it comes with."""
    kind = public_errors()[name]
    bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
    carried = attributes(kind)
    lines = [f"A {bases}.", "{ .setting }", ""]
    if carried:
        lines += [f"- `{each}`: {text}" for each, text in carried.items()]
    said = texts(name)
    number = "its text" if len(said) == 1 else f"its {len(said)} texts"
    return "\n".join(lines) + "\n" + _details(f"{number}, as the code has them", said)


def validation_texts(_: str) -> str:
    """The texts of values that the models refuse."""
    return _details("the texts, as the code has them", refused_values())


def faults(_: str) -> str:
    """The table of faults, as ``tinker-recovery faults`` prints it."""
    from tinker_recovery.faults import TABLE, SeenIn  # noqa: PLC0415 - as a command would

    rows = ["| kind | verdict | seen as | reason |", "|---|---|---|---|"]
    for row in TABLE:
        seen = row.seen_as
        if row.matches is not None and row.where != frozenset(SeenIn):
            seen += f" (from: {', '.join(sorted(row.where))})"
        cells = (f"`{row.kind.value}`", f"`{row.verdict.value}`", seen, row.reason)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


# Commands


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its whole name, a group before its own."""
    main = importlib.import_module("tinker_recovery.cli").main
    context = click.Context(main, info_name="tinker-recovery")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        yield name, command
        if isinstance(command, click.Group):
            for inner in command.commands:
                yield f"{name} {inner}", command.commands[inner]


def help_of(name: str) -> str:
    """A command's help, as a terminal of 80 columns shows it."""
    command: click.Command = importlib.import_module("tinker_recovery.cli").main
    context = click.Context(command, info_name="tinker-recovery", terminal_width=80)
    for part in name.split():
        assert isinstance(command, click.Group)  # noqa: S101 - what has a command of that name
        found = command.get_command(context, part)
        assert found is not None, name  # noqa: S101 - as above
        command, settings_ = found, found.context_settings
        context = click.Context(
            command, info_name=part, parent=context, terminal_width=80, **settings_
        )
    return command.get_help(context).rstrip()


def exit_status(name: str) -> str:
    """What a command's help says of the exit status, or that of its group of all its commands."""
    found = re.search(r"Exit status(?: of each)?: (.*?)(?:\n\s*\n|\Z)", help_of(name), re.DOTALL)
    if found is None:
        return exit_status(name.rpartition(" ")[0]) if " " in name else ""
    return " ".join(found[1].split())


def cli(_: str) -> str:
    """All commands: a table of their exit statuses, then the help of each."""
    table = ["| command | what it does | exit status |", "|---|---|---|"]
    sections = []
    for name, command in commands():
        shown = help_of(name)
        anchor = name.replace(" ", "-")
        first = (command.get_short_help_str(120) or "").rstrip(".")
        if not isinstance(command, click.Group):
            table.append(f"| [`{name}`](#{anchor}) | {first} | {exit_status(name)} |")
        level = "##" if " " not in name else "###"
        sections += [f"{level} `{name}` {{ #{anchor} }}", "", "```text", shown, "```", ""]
    return "\n".join([*table, "", *sections])


# Names


def _documented_constants(file: Path, prefixes: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Name, value and the text below it of a module's constants."""
    body = _trees()[file].body
    for node, after in zip(body, [*body[1:], None], strict=True):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(value))):
                said = ""
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    said = to_markdown(" ".join(str(after.value.value).split()))
                if name.startswith(prefixes):
                    yield name, value, said


def events(_: str) -> str:
    """Every event, the level it is logged at, and what it says."""
    import logging  # noqa: PLC0415 - for this table alone

    from tinker_recovery.telemetry.events import _LEVELS  # noqa: PLC0415, PLC2701 - the table

    rows = ["| event | logged at | |", "|---|---|---|"]
    for _name, value, said in _documented_constants(PACKAGE / "telemetry" / "names.py", ("EVENT_",)):
        rows.append(f"| `{value}` | {logging.getLevelName(_LEVELS[value])} | {said} |")
    return "\n".join(rows)


def metrics(_: str) -> str:
    """The table of metrics, from the module that makes them."""
    text = ast.get_docstring(_trees()[PACKAGE / "telemetry" / "metrics.py"]) or ""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    head, rule, *rest = rows
    lines = []
    for row in rest:
        name, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        named = ", ".join(f"`{each.strip()}`" for each in name.split(","))
        lines.append(f"| {named} | `{cells[0]}` | {cells[1]} |")
    return "\n".join([head, rule, *lines])


def spans(_: str) -> str:
    """Every span."""
    rows = ["| span | |", "|---|---|"]
    for _name, value, said in _documented_constants(PACKAGE / "telemetry" / "names.py", ("SPAN_",)):
        rows.append(f"| `{value}` | {said} |")
    return "\n".join(rows)


def api(given: str) -> str:
    """Public names for mkdocstrings: all of a module, or one as ``module.Name``."""
    module, _, name = given.rpartition(".")
    if name[:1].isupper() or (module and name in _all(module)):
        return _reference(module, name)
    internal = INTERNAL.get(given, ())
    return "\n\n".join(_reference(given, each) for each in _all(given) if each not in internal)


def api_errors(module: str) -> str:
    """Those public names of a module that are errors."""
    found = importlib.import_module(module)
    names = [
        name
        for name in _all(module)
        if inspect.isclass(value := getattr(found, name)) and issubclass(value, BaseException)
    ]
    return "\n\n".join(_reference(module, name) for name in names)


def _all(module: str) -> list[str]:
    names: list[str] = importlib.import_module(module).__all__
    return names


def _reference(module: str, name: str) -> str:
    """The request for one name, with a signature if users make such an object themselves."""
    value = getattr(importlib.import_module(module), name)
    made = (
        not inspect.isclass(value)
        or "Args:" in (value.__doc__ or "")
        or is_dataclass(value)
        or issubclass(value, BaseModel)
    )
    options = "" if made else "\n    options:\n      merge_init_into_class: false"
    return f"::: {module}.{name}{options}"


INTERNAL = {
    "tinker_recovery.telemetry": (
        "EventSink",
        "RunTelemetry",
        "past_span",
        "phase",
        "refuse",
        "trying",
    ),
}
"""What a module exports for the package itself."""


def _without_rules(text: str) -> str:
    """The headings of a docstring as headings of the page."""
    return re.sub(r"^(.+)\n=+$", r"## \1", text, flags=re.MULTILINE)


def module_text(module: str) -> str:
    """The text of a module, as a part of a page."""
    text = inspect.cleandoc(importlib.import_module(module).__doc__ or "")
    return _without_rules(to_markdown(text))


def file(path: str) -> str:
    """A file of the repository, whole."""
    kind = {".py": "python", ".toml": "toml", ".sh": "bash"}.get(Path(path).suffix, "text")
    code = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return f"````{kind}\n{code}\n````"


def page(path: str) -> str:
    """A page of the repository that is not in ``docs``, without its title."""
    text = (ROOT / path).read_text(encoding="utf-8")
    _, _, rest = text.partition("\n")
    return re.sub(r"\]\(docs/", "](", rest)


GENERATORS: Mapping[str, Callable[[str], str]] = {
    "settings": settings,
    "error": error,
    "validation-texts": validation_texts,
    "faults": faults,
    "cli": cli,
    "events": events,
    "metrics": metrics,
    "spans": spans,
    "api": api,
    "api-errors": api_errors,
    "module": module_text,
    "file": file,
    "page": page,
}

MARKER = re.compile(
    r"^(?P<indent> *)<!-- generated: (?P<kind>[a-z-]+)(?: (?P<of>\S+))? -->$", re.MULTILINE
)


def filled_in(markdown: str) -> str:
    """A page with everything that it asks for."""

    def made(found: re.Match[str]) -> str:
        text = GENERATORS[found["kind"]](found["of"] or "")
        return textwrap.indent(text, found["indent"])

    return MARKER.sub(made, markdown)
