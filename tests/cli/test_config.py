"""``tinker-recovery config show``: as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tinker_recovery import RecoveryPolicy
from tinker_recovery.cli import main
from tinker_recovery.policy_settings import SETTINGS


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "pyproject.toml"
    path.write_text("[tool.tinker_recovery.checkpoints]\nsave_every = 50\n")
    monkeypatch.chdir(tmp_path)
    return path


def _show(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["config", "show", *arguments])


def test_each_setting_is_shown_with_where_it_came_from(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_RECOVERY_STALL_AFTER_S", "none")
    done = _show("--set", "max_attempts=5", "--json")
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    assert shown["file"] == str(project)
    rows = {row.pop("name"): row for row in shown["settings"]}
    assert list(rows) == list(SETTINGS)
    assert rows["max_attempts"] == {
        "value": 5,
        "source": "flag",
        "where": "",
        "variable": "TINKER_RECOVERY_MAX_ATTEMPTS",
    }
    assert (rows["stall_after_s"]["value"], rows["stall_after_s"]["source"]) == (None, "variable")
    assert rows["checkpoints.save_every"]["value"] == 50
    assert rows["checkpoints.save_every"]["where"] == (
        f"{project}: [tool.tinker_recovery.checkpoints]"
    )
    assert rows["backoff_s"]["source"] == "default"
    assert rows["backoff_s"]["value"] == RecoveryPolicy().backoff_s
    lines = [line.split(maxsplit=2) for line in _show().stdout.splitlines()]
    assert ["stall_after_s", "none", "variable TINKER_RECOVERY_STALL_AFTER_S"] in [
        [part.strip() for part in line] for line in lines
    ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "max_attempts=0"], "max_attempts='0', from flag, is not allowed"),
        (["--set", "max_attempts"], "NAME=VALUE"),
        (["--set", "max_atempts=1"], "did you mean max_attempts?"),
        (["--config", "nowhere.toml"], "--config='nowhere.toml' is no file"),
    ],
)
def test_what_is_refused_is_status_2_with_the_reason(arguments: list[str], reason: str) -> None:
    done = _show(*arguments)
    assert done.exit_code == 2
    assert reason in done.stderr
