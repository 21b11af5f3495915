"""What a start costs: nothing is imported that is not asked for, and nothing is missed by it."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import tinker_recovery
from tinker_recovery import cli, supervision
from tinker_recovery.cli import main

HEAVY = {"anyio", "httpx", "opentelemetry", "pydantic", "rich", "tinker"}


def _fresh(code: str, **environment: str) -> str:
    """What a new interpreter prints last that runs this."""
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def _loaded(code: str) -> set[str]:
    """Names of the modules that are loaded after this code."""
    said = _fresh(f"import json, sys\n{code}\nprint(json.dumps(list(sys.modules)))")
    return set(json.loads(said))


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_neither_version_nor_help_loads_a_library_or_a_command(option: str) -> None:
    loaded = _loaded(
        f"from tinker_recovery.cli import main; main([{option!r}], standalone_mode=False)"
    )
    assert loaded & HEAVY == set()
    ours = {name for name in loaded if name.partition(".")[0] == "tinker_recovery"}
    assert ours == {
        "tinker_recovery",
        "tinker_recovery.cli",
        "tinker_recovery.supervision",
        "tinker_recovery.supervision.errors",
    }


def test_the_version_is_that_of_the_package() -> None:
    said = _fresh("from tinker_recovery.cli import main; main(['--version'], prog_name='it')")
    assert said == f"it, version {tinker_recovery.__version__}"


def test_the_list_of_commands_has_each_command_with_the_help_of_its_own() -> None:
    modules = {
        each.name
        for each in pkgutil.iter_modules(cli.__path__)
        if hasattr(importlib.import_module(f"tinker_recovery.cli.{each.name}"), "command")
        and each.name != "__main__"
    }
    context = click.Context(main)
    assert set(main.list_commands(context)) == modules
    with context.scope():
        context.terminal_width = 200
        shown = main.get_help(context).partition("Commands:\n")[2]
    said = dict(line.split(maxsplit=1) for line in shown.partition("\n\n")[0].splitlines())
    own = {}
    for name in modules:
        command = main.get_command(context, name)
        assert command is not None
        own[name] = (command.help or "").partition("\n\n")[0].replace("\n", " ")
    assert said == own


FACES = {"tinker_recovery": tinker_recovery, "tinker_recovery.supervision": supervision}


@pytest.mark.parametrize("face", FACES)
def test_importing_a_package_loads_none_of_its_names(face: str) -> None:
    assert _loaded(f"import {face}") & HEAVY == set()


@pytest.mark.parametrize("face", FACES)
def test_a_type_checker_sees_each_public_name_where_it_is_taken_from(face: str) -> None:
    module = FACES[face]
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted({*seen, "__version__"} if face == "tinker_recovery" else seen) == module.__all__
    assert set(module.__all__) <= set(dir(module))
    for name, home in seen.items():
        assert home is not None
        assert getattr(module, name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("face", FACES)
def test_a_star_import_gives_every_public_name(face: str) -> None:
    said = _fresh(
        f"from {face} import *\nimport {face} as it\nprint({{*it.__all__}} <= {{*dir()}})"
    )
    assert said == "True"


@pytest.mark.parametrize("face", FACES)
def test_a_name_that_there_is_not_is_an_attribute_error_and_is_not_to_be_imported(
    face: str,
) -> None:
    with pytest.raises(AttributeError, match=rf"module '{face}' has no attribute 'Nonesuch'"):
        _ = FACES[face].Nonesuch
    assert not hasattr(FACES[face], "__wrapped__")
    with pytest.raises(ImportError, match="cannot import name 'Nonesuch'"):
        exec(f"from {face} import Nonesuch")  # noqa: S102 - as a user writes it


def test_the_rooms_of_the_package_are_attributes_of_it() -> None:
    said = _fresh(
        "import tinker_recovery as it\n"
        "print(it.testing.LocalTinker.__name__, it.errors.UsageError is it.UsageError)"
    )
    assert said == "LocalTinker True"


def test_a_room_that_lacks_a_library_says_so_and_not_that_there_is_no_such_room() -> None:
    said = _fresh(
        "import sys\n"
        "sys.modules['starlette'] = None\n"
        "import tinker_recovery\n"
        "try:\n"
        "    tinker_recovery.testing\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)"
    )
    assert said == 'the local Tinker server needs starlette: pip install "tinker-recovery[local]"'


KEY = "tml-a-key-of-the-environment"


@pytest.mark.parametrize(
    ("imported", "shows"),
    [
        ("tinker_recovery.errors", f"print(tinker_recovery.errors.UsageError('it is {KEY}'))"),
        ("tinker_recovery.supervision", f"print(_.ChildNotFound('a', 'it is {KEY}'))"),
        ("tinker_recovery", f"logging.getLogger('tinker_recovery').error('it is {KEY}')"),
        (
            "tinker_recovery.supervision",
            f"logging.getLogger(_.__name__).error('it is %s', '{KEY}')",
        ),
    ],
)
def test_a_secret_is_hidden_whatever_little_of_the_package_was_imported(
    imported: str, shows: str
) -> None:
    said = _fresh(
        f"import logging, sys, {imported}, {imported} as _\n"
        f"logging.basicConfig(stream=sys.stdout, format='%(message)s')\n{shows}",
        TINKER_API_KEY=KEY,
    )
    assert said == "it is ***"
