"""``tinker-recovery export``, on a real service; and after ``demo --keep``, in real processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from a_run import loaded, newest, trained
from click.testing import CliRunner, Result

from tinker_recovery.cli import main
from tinker_recovery.cli.kept_demos import note_demo
from tinker_recovery.export import merge as merging
from tinker_recovery.export.manifest import CheckpointFacts
from tinker_recovery.export.noting import noted
from tinker_recovery.journal import Journal, default_path
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.publication import Publication, kept_for_export
from tinker_recovery.testing import FaultRule, LocalHub, LocalTinker

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries")


async def _export(*arguments: str) -> Result:
    def call() -> Result:
        return CliRunner().invoke(main, ["export", *arguments], catch_exceptions=False)

    return await anyio.to_thread.run_sync(call)


async def _json(*arguments: str, expect: int = 0) -> Any:
    result = await _export(*arguments, "--json")
    assert result.exit_code == expect, result.output
    return json.loads(result.stdout)


async def test_a_run_is_exported_by_its_name_and_a_checkpoint_by_its_path(
    local: LocalTinker, tmp_path: Path
) -> None:
    supervisor = await trained("sft-42")
    path = newest(local, supervisor)
    result = await _export("sft-42", "--to", str(tmp_path / "a"))
    assert result.exit_code == 0
    assert f"checkpoint   {path}, step 6 of run sft-42" in result.output
    assert "PeftModel.from_pretrained(base, " in result.output
    said = await _json(path, "--to", str(tmp_path / "b"))
    assert (said["checkpoint"], said["step"], said["run"]) == (path, 6, "sft-42")
    assert said["base_model"] == "Qwen/Qwen3-8B"
    assert loaded(tmp_path / "a").keys() == loaded(tmp_path / "b").keys()
    said = await _json("sft-42", "--checkpoint", "step:4", "--to", str(tmp_path / "c"))
    assert said["step"] == 4
    said = await _json(
        "sft-42", "--format", "gguf", "--to", str(tmp_path / "d"), "--checkpoint", "best"
    )
    assert list(said["files"]) == ["adapter.gguf"]


async def test_what_cannot_be_exported_is_said_with_its_own_exit_status(
    local: LocalTinker, tmp_path: Path
) -> None:
    path = newest(local, await trained("sft-42"))
    to = str(tmp_path / "a")
    assert (await _export("sft-42")).exit_code == 2
    assert (await _export("sft-42", "--push", "a name")).exit_code == 2
    assert (await _export("nobody", "--to", to)).exit_code == 1
    assert (await _export("tinker://x/sampler_weights/y", "--to", to)).exit_code == 2
    gone = await _json(f"{path}-gone", "--to", to, expect=1)
    assert gone["exported"] is False
    assert "-gone is not listed" in gone["reason"]
    local.inject(FaultRule("status", request="download", status=503, times=3))
    broken = await _json("sft-42", "--to", to, expect=3)
    assert "the next try goes on from there" in broken["reason"]
    assert (await _json("sft-42", "--to", to))["exported"]
    assert (await _json(path, "--to", to))["exported"]
    assert (await _json("sft-42", "--checkpoint", "step:4", "--to", to, expect=1))["reason"]


async def test_an_export_is_published_when_asked_for(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = newest(local, await trained("sft-42"))
    async with LocalHub() as hub:
        for name, value in hub.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        said = await _json("sft-42", "--push", "me/sft-42")
        assert said["folder"] is None
        assert said["published"]["repository"] == "me/sft-42"
        (commit,) = hub.repositories["me/sft-42"].commits
        assert path in commit.description
        assert commit.title == "step 6 of run sft-42"
        again = await _export(path, "--push", "me/sft-42", "--to", str(tmp_path / "a"))
        assert again.exit_code == 0, again.output
        hub.fail(401, "Invalid username or password.", times=9)
        refused = await _json("sft-42", "--push", "me/sft-42", expect=1)
        assert "HTTP 401" in refused["reason"]


async def test_what_is_exported_is_noted_while_it_is(local: LocalTinker, tmp_path: Path) -> None:
    path = newest(local, await trained("sft-42"))
    local.inject(FaultRule("slow", request="download", delay_s=1.0, times=1))

    def notes() -> dict[str, str]:
        with Journal(default_path(), service=local.base_url) as journal:
            return kept_for_export(journal.notes().publications)

    async with anyio.create_task_group() as group:
        group.start_soon(_export, "sft-42", "--to", str(tmp_path / "a"))
        while not local.stats.by_route.get("download"):  # noqa: ASYNC110 - another thread's doing
            await anyio.sleep(0.02)
        assert notes() == {path: "it is being exported"}
    assert notes() == {}


async def test_the_end_of_an_export_leaves_what_the_run_has_noted_of_its_checkpoint(
    tmp_path: Path,
) -> None:
    """It is to be published: that was noted while the export was under way."""
    file, url = tmp_path / "journal.sqlite3", "http://127.0.0.1:1"
    facts = CheckpointFacts(path="tinker://a/weights/5", run="sft-42", lineage="1", step=5)
    here = Holder.here(now=0.0, lease_s=0.0)
    to_publish = Publication(
        path=facts.path, run="sft-42", lineage="1", step=5, repository="me/sft", holder=here
    )
    with Journal(file, service=url) as journal:
        async with noted(facts, file, service=url):
            journal.write_publication(facts.path, to_publish.said())
        assert journal.notes().publications == {facts.path: to_publish.said()}
        journal.end_publication(facts.path)
        async with noted(facts, file, service=url):
            assert facts.path in journal.notes().publications
        assert journal.notes().publications == {}


async def test_a_merge_is_refused_without_the_cookbook_and_where_something_is(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trained("sft-42")
    given = ("sft-42", "--to", str(tmp_path / "a"), "--merge", str(tmp_path / "m"))
    monkeypatch.setattr(merging, "_MERGE", "raise SystemExit('no room')")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "not installed" in (await _json(*given, expect=1))["reason"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert (await _export(*given, "--format", "gguf")).exit_code == 2
    assert "not merged: no room" in (await _json(*given, expect=3))["reason"]
    (tmp_path / "m").mkdir()
    assert "exists" in (await _json(*given, expect=1))["reason"]
    assert local.sessions()


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    without = {name: text for name, text in os.environ.items() if not name.startswith("TINKER_")}
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "tinker_recovery.cli", *arguments],
        cwd=folder,
        # Of a service that the demo has nothing to do with.
        env={
            **without,
            "TINKER_RECOVERY_STATE_DIR": str(folder / "state"),
            "TINKER_BASE_URL": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_the_demo_has_kept_is_exported_though_its_server_is_gone(tmp_path: Path) -> None:
    demo = _run(tmp_path, "demo", "--keep", "kept", "--steps", "12", "--pace", "0")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "tinker-recovery export poisoned --to adapter" in demo.stdout
    done = _run(tmp_path, "export", "poisoned", "--to", "adapter", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"kept in {tmp_path / 'kept'}" in done.stderr
    said = json.loads(done.stdout)
    assert (said["run"], said["step"]) == ("poisoned", 12)
    again = _run(tmp_path, "export", "poisoned", "--journal", "kept", "--to", "adapter")
    assert again.returncode == 0, again.stdout + again.stderr
    assert any(name.endswith("down_proj.lora_B.weight") for name in loaded(tmp_path / "adapter"))


async def test_a_run_of_the_users_service_comes_before_that_of_a_demo_by_the_same_name(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path / "another machine"))
    path = newest(local, await trained("poisoned"))
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path / "kept"))
    async with LocalTinker() as demo:
        with monkeypatch.context() as served:
            served.setenv("TINKER_BASE_URL", demo.base_url)
            served.setenv("TINKER_API_KEY", demo.api_key)
            await trained("poisoned")
            await trained("of the demo")
        monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path / "state"))
        note_demo(tmp_path / "kept")
        said = await _json("poisoned", "--to", str(tmp_path / "a"))
        assert said["checkpoint"] == path
        other = await _export("of the demo", "--to", str(tmp_path / "b"))
        assert "is the run that `demo --keep` has kept in" in other.output
