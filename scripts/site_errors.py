"""Errors, for the site: what each class carries, and the texts it comes with in the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

from site_settings import attributes

PACKAGE = Path(__file__).parents[1] / "tinker_recovery"


@cache
def trees() -> Mapping[Path, ast.Module]:
    """The code of the package, but for the test kit."""
    return {
        file: ast.parse(file.read_text(encoding="utf-8"))
        for file in sorted(PACKAGE.rglob("*.py"))
        if "testing" not in file.parts
    }


def _template(node: ast.expr) -> str | None:
    """A message as it is written in the code, with what varies in braces."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_template(part) or "" for part in parts)
        case ast.FormattedValue(value=value):
            return f"{{{_what(value)}}}"
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
    said = dict.fromkeys(text for name, text in _said() if name == error)
    return [text for text in said if re.search(r"\w{3}.*\s", text)]


@cache
def _said() -> list[tuple[str, str]]:
    """Every call of a plain name whose first argument is a text, and what a class itself says."""
    found: list[tuple[str, str]] = []
    for tree in trees().values():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[first, *_]):
                    found.append((name, _template(first) or ""))
                case ast.ClassDef(name=name):
                    found += [(name, text) for text in _own_text(node)]
    return found


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
        for node in ast.walk(trees()[PACKAGE / file]):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id="ValueError"), args=[first, *_])):
                    found.append(_template(first) or "")
    return list(dict.fromkeys(filter(None, found)))


def public_errors() -> dict[str, type[BaseException]]:
    """Every error class that a user can meet, by name."""
    errors = importlib.import_module("tinker_recovery.errors")
    tree = importlib.import_module("tinker_recovery.supervision")
    named = {name: value for name, value in vars(errors).items() if _is_of(errors, value)}
    named |= {name: getattr(tree, name) for name in tree.__all__}
    return {name: value for name, value in named.items() if _is_error(value)}


def _is_of(module: ModuleType, value: object) -> bool:
    return getattr(value, "__module__", "") == module.__name__


def _is_error(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseException)


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
    lines = [f"Subclass of {bases}.", "{ .setting }", ""]
    if carried:
        lines += [f"- `{each}`: {text}" for each, text in carried.items()]
    said = texts(name)
    number = "its text" if len(said) == 1 else f"its {len(said)} texts"
    return "\n".join(lines) + "\n" + _details(f"{number}, as the code has them", said)


def validation_texts(_: str) -> str:
    """The texts of values that the models refuse."""
    return _details("the texts, as the code has them", refused_values())
