"""``checkpoints list`` and ``prune`` of sampler weights, on a real service."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import pytest_asyncio
from click.testing import CliRunner, Result
from loops import MODEL, SEED, policy
from loops import loop as run_loop

from tinker_recovery import Attempt, RecoveryEvent, Supervisor
from tinker_recovery.cli import main
from tinker_recovery.cli.checkpoints.context import Context
from tinker_recovery.journal import Journal, default_path
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.publication import Publication
from tinker_recovery.service.checkpoint_calls import CheckpointCalls, _route
from tinker_recovery.testing import LocalTinker


@pytest_asyncio.fixture
async def local(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalTinker]:
    """A server whose clock is two days behind, so that what is saved there is not recent."""
    async with LocalTinker(wall=lambda: time.time() - 2 * 86_400) as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        yield server


async def _call(*arguments: str) -> Result:
    def call() -> Result:
        return CliRunner().invoke(main, list(arguments), catch_exceptions=False)

    return await anyio.to_thread.run_sync(call)


async def _json(*arguments: str) -> Any:
    result = await _call("checkpoints", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def _trained(name: str = "sft-42") -> list[str]:
    """A run whose loop saved sampler weights four times; their paths."""
    events: list[RecoveryEvent] = []

    async def train(attempt: Attempt) -> None:
        for step in range(4):
            await run_loop(attempt.client, step, step + 1, 0)
            await attempt.client.save_weights_for_sampler(f"s{step}")

    async with Supervisor(policy(), on_event=events.append) as supervisor:
        await supervisor.run(train, base_model=MODEL, rank=8, seed=SEED, name=name)
    saved = [each for each in events if each.name == "checkpoint.sampler_saved"]
    return [str(each.fields["tinker_recovery.checkpoint.path"]) for each in saved]


@pytest.mark.usefixtures("local")
async def test_sampler_weights_are_listed_by_run_and_pruned_with_the_same_protections() -> None:
    paths = await _trained()
    other = await _trained("other")
    rows = await _json("list", "--kind", "sampler", "--run", "sft-42")
    assert [row["path"] for row in rows] == paths[::-1]
    assert {row["run"] for row in rows} == {"sft-42"}
    assert len(await _json("list", "--kind", "sampler")) == 8
    assert not {row["path"] for row in await _json("list")} & {*paths, *other}
    shown = (await _call("checkpoints", "list", "--kind", "sampler")).output
    assert len(shown.splitlines()) == 1 + 8

    assert (await _call("checkpoints", "pin", paths[0])).exit_code == 0
    prune = ("prune", "--kind", "sampler", "--run", "sft-42", "--keep-last", "2")
    planned = await _json(*prune, "--dry-run")
    assert [row["path"] for row in planned["to_delete"]] == [paths[1]]
    shown = (await _call("checkpoints", *prune, "--dry-run")).output
    assert "1 to delete" in shown
    assert "pinned: pinned by the user" in " ".join(shown.split())
    assert (await _call("checkpoints", *prune)).exit_code == 2
    done = await _json(*prune, "--yes")
    assert (done["deleted"], done["failed"]) == ([paths[1]], [])
    left = {row["path"] for row in await _json("list", "--kind", "sampler")}
    assert left == {paths[0], *paths[2:], *other}


@pytest.mark.parametrize("meanwhile", ["pinned", "published", "exported", "trained"])
async def test_what_is_protected_since_the_plan_was_made_is_not_pruned(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Between the first deletion and the second: a person asked may take long to answer, too."""
    paths = await _trained()
    remove, deleted = CheckpointCalls.remove, list[str]()
    here = Holder.here(now=0.0, lease_s=0.0)

    async def busy(_: Context, names: Collection[str]) -> dict[str, Holder]:
        assert "sft-42" in names
        return {"sft-42": here}

    async def protect(self: CheckpointCalls, path: str, *, deadline_s: float) -> str | None:
        why = await remove(self, path, deadline_s=deadline_s)
        deleted.append(path)
        for each in {*paths[:3]} - {path} if len(deleted) == 1 else ():
            if meanwhile == "published":
                await self._http.send("POST", f"{_route(each)}/publish")
            elif meanwhile == "trained":
                monkeypatch.setattr(Context, "busy_runs", busy)
            else:
                with Journal(default_path(), service=local.base_url) as journal:
                    if meanwhile == "pinned":
                        journal.pin(each)
                    else:
                        made = Publication(path=each, run="", lineage="", step=0, holder=here)
                        journal.write_publication(each, made.said())
        return why

    monkeypatch.setattr(CheckpointCalls, "remove", protect)
    prune = ("prune", "--kind", "sampler", "--run", "sft-42", "--keep-last", "1")
    done = await _json(*prune, "--yes")
    assert done["deleted"] == deleted
    assert len(deleted) == 1
    assert done["failed"] == []
    left = {row["path"] for row in done["left_since"]}
    assert left == {*paths[:3]} - {*deleted}
    word = {
        "pinned": "pinned",
        "published": "published",
        "exported": "it is being exported",
        "trained": "a process trains it",
    }[meanwhile]
    assert all(word in row["reason"] for row in done["left_since"])


@pytest.mark.usefixtures("local")
async def test_sampler_weights_of_a_run_that_another_machine_trains_are_left_alone(
    tmp_path: Path,
) -> None:
    await _trained()
    seen: list[Any] = []

    async def train(attempt: Attempt) -> None:
        await run_loop(attempt.client, 4, 5, 0)
        prune = ("prune", "--kind", "sampler", "--run", "sft-42", "--keep-last", "1", "--yes")
        seen.append(await _json(*prune))

    async with Supervisor(policy(), journal=tmp_path / "another machine.sqlite3") as supervisor:
        await supervisor.run(train, base_model=MODEL, rank=8, seed=SEED, name="sft-42", extend=True)
    (done,) = seen
    assert (done["left_alone"], done["to_delete"], done["deleted"]) == (["sft-42"], [], [])


@pytest.mark.usefixtures("local")
async def test_a_runs_own_sampler_weights_are_named_in_its_report(tmp_path: Any) -> None:
    paths = await _trained()
    page = tmp_path / "page.html"
    assert (await _call("report", "sft-42", "-o", str(page))).exit_code == 0
    text = page.read_text()
    assert all(f"sampler weights {path.rpartition('/')[2]}, at step" in text for path in paths)
