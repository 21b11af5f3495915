"""Imports only ever point down the list of rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import tinker_recovery

ROOMS = [
    "cli",
    "__init__",
    "supervisor",
    "household",
    "watched",
    "run",
    "report",
    "retention",
    "doctor",
    "recovery",
    "detection",
    "journal",
    "service",
    "checkpoints",
    "faults",
    "telemetry",
    "policy_settings",
    "policy",
    "errors",
    "clock",
    "supervision",
    "testing",
]
"""Top first. A room may import those below it, and itself."""

PACKAGE = Path(tinker_recovery.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def _room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`: naming a type of a room above calls nothing
    of it, and copying the type into a protocol would only hide that."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _run_time_nodes(node)


def _imported_rooms(module: Path) -> set[str]:
    rooms = set()
    for node in _run_time_nodes(ast.parse(module.read_text())):
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
    upward = {
        str(module.relative_to(PACKAGE)): above
        for module in MODULES
        if (
            above := [
                room
                for room in _imported_rooms(module)
                if ROOMS.index(room) < ROOMS.index(_room(module))
            ]
        )
    }
    assert not upward, "each of these imports rooms that stand above it"
