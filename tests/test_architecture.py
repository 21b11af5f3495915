"""Imports only ever point down the list of rooms, and the docs say so, too."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tinker_recovery
from tinker_recovery.service import SupervisedClient

ROOMS = [
    "cli",
    "__init__",
    "jobs",
    "supervisor",
    "cookbook",
    "watched",
    "run",
    "report",
    "export",
    "retention",
    "doctor",
    "recovery",
    "detection",
    "journal",
    "service",
    "checkpoints",
    "outlets",
    "faults",
    "telemetry",
    "policy_settings",
    "policy",
    "costs",
    "checkpoint_policy",
    "fields",
    "forks",
    "shielding",
    "errors",
    "clock",
    "supervision",
    "testing",
]
"""Top first. A room may import those below it, and itself."""

PACKAGE = Path(tinker_recovery.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
DOCS = PACKAGE.parent / "docs"

MOST_IN_THE_ROOT = 10
MOST_LINES = 500


def _room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


FOR_TYPES_ONLY = {
    ("retention/loop.py", "run"),
    ("service/client.py", "run"),
    ("service/iterating.py", "run"),
    ("service/surface.py", "run"),
    ("telemetry/run_telemetry.py", "checkpoints"),
}
"""The only imports that point up, each under ``if TYPE_CHECKING``: none runs."""


def _runs(tree: ast.AST, *, later: bool = True) -> Iterator[ast.AST]:
    """Every node but those that only a type checker reads.

    Args:
        tree: Where they are.
        later: Also what runs only when a function is called.
    """
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield other
                yield from _runs(other, later=later)
            continue
        yield child
        if later or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _runs(child, later=later)


def _imported_rooms(nodes: Iterable[ast.AST]) -> set[str]:
    rooms = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinker_recovery"):
            assert node.level == 0
            _, *rest = (node.module or "").split(".")
            rooms |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                package, *rest = alias.name.split(".")
                if package == "tinker_recovery":
                    rooms.add(rest[0] if rest else "__init__")
    return {room if room in ROOMS else "__init__" for room in rooms}


def test_every_module_is_in_a_room() -> None:
    assert {_room(module) for module in MODULES} == set(ROOMS)


def test_imports_point_down() -> None:
    assert not _upward(_runs), "each of these imports a room that stands above it"
    assert _upward(ast.walk) == FOR_TYPES_ONLY


def _upward(nodes_of: Callable[[ast.AST], Iterable[ast.AST]]) -> set[tuple[str, str]]:
    return {
        (str(module.relative_to(PACKAGE)), room)
        for module in MODULES
        for room in _imported_rooms(nodes_of(ast.parse(module.read_text())))
        if ROOMS.index(room) < ROOMS.index(_room(module))
    }


def test_any_module_may_be_the_first_to_be_imported() -> None:
    """No module waits, in its own import, for one that waits for it."""
    needs = {_name(module): _needs(module) for module in MODULES}
    sound: set[str] = set()
    while found := {name for name in needs.keys() - sound if needs[name] <= sound}:
        sound |= found
    assert needs.keys() - sound == set()


def _name(module: Path) -> str:
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _needs(module: Path) -> set[str]:
    """The modules that are imported whole before this one is, packages that it is in excepted."""
    found = set()
    for node in _runs(ast.parse(module.read_text()), later=False):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    found |= {
        ".".join(parts[:end])
        for parts in (each.split(".") for each in found)
        for end in range(1, len(parts))
    }
    inside = f"{_name(module)}."
    return {
        name
        for name in map(_name, MODULES)
        if name in found and name != inside[:-1] and not inside.startswith(f"{name}.")
    }


def test_the_root_holds_what_a_user_imports_and_nothing_else() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_IN_THE_ROOT


def test_every_module_can_be_read_at_a_sitting() -> None:
    long = {str(m.relative_to(PACKAGE)): n for m in MODULES if (n := _lines(m)) > MOST_LINES}
    assert not long


def _lines(module: Path) -> int:
    return len(module.read_text().splitlines())


def test_every_room_says_what_lives_there() -> None:
    silent = [
        str(init.relative_to(PACKAGE))
        for init in PACKAGE.glob("*/__init__.py")
        if not ast.get_docstring(ast.parse(init.read_text()))
    ]
    assert not silent


def test_the_architecture_document_lists_the_rooms_in_this_order() -> None:
    text = (DOCS / "architecture.md").read_text()
    table = text.partition("## Rooms")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == ROOMS


def test_what_our_own_code_asks_of_a_client_is_not_passed_on_to_the_sdk() -> None:
    """A SupervisedClient passes on every name it does not know, so no type checker would object."""
    known = {name for each in SupervisedClient.__mro__ for name in vars(each)}
    known |= {"errors", "failed", "failed_saves", "first_call_at", "meter", "unanswered"}
    passed_on = {
        (str(module.relative_to(PACKAGE)), node.attr)
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute | ast.Name)
        and (node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id)
        == "client"
        and _room(module) == "run"
        and node.attr not in known
    }
    assert not passed_on
