"""What is public is used, as a user would, in a file that mypy checks."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

INTERNAL = {
    "tinker_recovery.telemetry": {
        "EventSink",
        "RunTelemetry",
        "past_span",
        "phase",
        "refuse",
        "trying",
    },
}
"""For the package itself, whatever their module exports."""

API = ast.parse((Path(__file__).parent / "typing" / "api.py").read_text())


@pytest.mark.parametrize(
    "module",
    [
        "tinker_recovery",
        "tinker_recovery.supervision",
        "tinker_recovery.telemetry",
        "tinker_recovery.testing",
    ],
)
def test_every_public_name_is_in_the_typing_test(module: str) -> None:
    used = {
        alias.name
        for node in ast.walk(API)
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
        if f"{node.module}.".startswith(f"{module}.") or node.module == "tinker_recovery"
    }
    public = set(importlib.import_module(module).__all__)
    assert public - used == INTERNAL.get(module, set())
