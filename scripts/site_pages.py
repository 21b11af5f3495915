"""What the site's pages take from the code: settings, errors, faults, commands, names.

Each function gives Markdown. A page asks for one with a comment, ``<!-- generated: settings
RecoveryPolicy -->``, and ``site_hook`` puts it there when the site is built, so nothing generated
is kept, and nothing is out of date.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path

import click
from pydantic import BaseModel
from site_docstrings import to_markdown
from site_errors import PACKAGE, error, trees, validation_texts
from site_settings import settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


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


def _constants(prefix: str) -> Iterator[tuple[str, str]]:
    """The names of telemetry that begin so, each with the text below it."""
    body = trees()[PACKAGE / "telemetry" / "names.py"].body
    for node, after in zip(body, [*body[1:], None], strict=True):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(value))):
                said = ""
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    said = to_markdown(" ".join(str(after.value.value).split()))
                if name.startswith(prefix):
                    yield value, said


def events(_: str) -> str:
    """Every event, the level it is logged at, and what it says."""
    import logging  # noqa: PLC0415 - for this table alone

    from tinker_recovery.telemetry.events import _LEVELS  # noqa: PLC0415 - as above

    rows = ["| event | logged at | |", "|---|---|---|"]
    for value, said in _constants("EVENT_"):
        rows.append(f"| `{value}` | {logging.getLevelName(_LEVELS[value])} | {said} |")
    return "\n".join(rows)


def metrics(_: str) -> str:
    """The table of metrics, from the module that makes them."""
    tree = trees()[PACKAGE / "telemetry" / "metrics.py"]
    described = dict(_instruments(tree))
    rows = ["| metric | unit | what | attributes |", "|---|---|---|---|"]
    for row in (ast.get_docstring(tree) or "").splitlines():
        if row.startswith("| tinker_recovery"):
            named, unit, attributes = (cell.strip() for cell in row.strip("|").split("|"))
            first, *others = (each.strip() for each in named.split(","))
            # `a.b.done, .replayed` are two of one kind.
            both = (first, *(first.rpartition(".")[0] + each for each in others))
            rows += [f"| `{each}` | `{unit}` | {described[each]} | {attributes} |" for each in both]
    return "\n".join(rows)


def _instruments(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The name and the description that each instrument is made with."""
    names = {
        target.id: str(node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(args=[ast.Name(id=name), *rest], keywords=given) if name in names:
                said = [*rest, *(each.value for each in given if each.arg == "description")]
                texts = [each.value for each in said if isinstance(each, ast.Constant)]
                if texts:
                    yield names[name], str(texts[-1])


def spans(_: str) -> str:
    """Every span."""
    rows = ["| span | |", "|---|---|"]
    rows += [f"| `{value}` | {said} |" for value, said in _constants("SPAN_")]
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
    """The text of a module from its first heading on, or all of it, as a part of a page."""
    # Read and not imported, which may take what only tests have.
    path = ROOT / module.replace(".", "/")
    file_ = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file_.read_text(encoding="utf-8"))) or ""
    whole = _without_rules(to_markdown(text))
    before, heading, rest = whole.partition("\n## ")
    return f"## {rest}" if heading else before


def file(path: str) -> str:
    """A file of the repository, whole, to be unfolded."""
    kind = {".py": "python", ".toml": "toml", ".sh": "bash"}.get(Path(path).suffix, "text")
    code = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return f'??? example "{path}"\n\n' + textwrap.indent(f"````{kind}\n{code}\n````", " " * 4)


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
    r"^(?P<indent> *)<!-- generated: (?P<kind>[a-z-]+)(?: (?P<of>\S+))? -->$(?:\n\*.*\*$)?",
    re.MULTILINE,
)
"""The request, with the line in italics that a reader of the sources sees instead."""


def filled_in(markdown: str) -> str:
    """A page with everything that it asks for."""

    def made(found: re.Match[str]) -> str:
        text = GENERATORS[found["kind"]](found["of"] or "")
        return textwrap.indent(text, found["indent"])

    return MARKER.sub(made, markdown)
