"""``tinker-recovery checkpoints``, on a real service."""

from __future__ import annotations

import functools
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import pytest_asyncio
from click.testing import CliRunner, Result
from loops import ADAM, MODEL, SEED, batch, loop, policy, train
from named_runs import NAMED, Died

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy, Supervisor
from tinker_recovery.cli import main
from tinker_recovery.journal import STATE_FOLDER, Journal, default_path, journal_path
from tinker_recovery.testing import FaultRule, LocalTinker


@pytest_asyncio.fixture
async def local(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalTinker]:
    """A server whose clock is two days behind, so that what is saved there is not recent."""
    async with LocalTinker(wall=lambda: time.time() - 2 * 86_400) as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        yield server


@pytest_asyncio.fixture
async def aged(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[LocalTinker, list[float]]]:
    """A server, and by how much its clock is behind: two days, until a test sets that to 0."""
    behind_s = [2 * 86_400.0]
    async with LocalTinker(wall=lambda: time.time() - behind_s[0]) as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        yield server, behind_s


async def _awaited(attempt: Attempt, steps: int = 10) -> None:
    """Train on, and await each save: one may take longer than the steps up to the next."""
    for step in range(0, steps, 2):
        await loop(attempt.client, step, step + 2, 0)
        await attempt.client.drain()


async def _trained(
    name: str | None = None,
    *,
    journal: object = STATE_FOLDER,
    train: Callable[[Attempt], Awaitable[None]] = _awaited,
) -> Supervisor:
    """A run that has kept its checkpoints at 2, 4, 6, 8 and 10, in the default journal."""
    given = policy(
        checkpoints=CheckpointPolicy(
            save_at_start=False, strategy="all", save_every=2, save_at_end=False
        )
    )
    async with Supervisor(given, journal=journal) as supervisor:  # type: ignore[arg-type]  # passed through
        options: dict[str, Any] = {} if name is None else {"name": name}
        await supervisor.run(train, base_model=MODEL, rank=8, seed=SEED, **options)
    return supervisor


def _from_step(step: int) -> RecoveryPolicy:
    """A policy that keeps what it saves every two steps, and goes back to this one."""
    keeping = CheckpointPolicy(save_at_start=False, strategy="all", save_every=2, save_at_end=False)
    return policy(checkpoint_strategy=f"step:{step}", checkpoints=keeping)


async def _left(given: RecoveryPolicy, step: int, *, journal: object = STATE_FOLDER) -> Supervisor:
    """A process that ends at this step."""

    async def dying(attempt: Attempt) -> None:
        await train(attempt, steps=step)
        raise Died

    with pytest.raises(Died):
        async with Supervisor(given, journal=journal) as supervisor:  # type: ignore[arg-type]  # passed through
            await supervisor.run(dying, **NAMED)
    return supervisor


async def _call(*arguments: str) -> Result:
    def call() -> Result:
        return CliRunner().invoke(main, ["checkpoints", *arguments], catch_exceptions=False)

    return await anyio.to_thread.run_sync(call)


async def _json(*arguments: str, expect: int = 0) -> Any:
    result = await _call(*arguments, "--json")
    assert result.exit_code == expect, result.output
    return json.loads(result.stdout.splitlines()[-1])


def _paths(local: LocalTinker, supervisor: Supervisor) -> dict[int, str]:
    run_id = supervisor.runs[0].segments[0].run_id
    return {each.steps: each.path for each in local.checkpoints(run_id)}


async def test_list_shows_the_metadata_of_each_checkpoint(local: LocalTinker) -> None:
    supervisor = await _trained()
    rows = await _json("list")
    assert [row["step"] for row in rows] == [10, 8, 6, 4, 2]
    assert {row["lineage"] for row in rows} == {supervisor.runs[0].lineage}
    assert len(await _json("list", "--run", supervisor.runs[0].segments[0].run_id)) == 5
    head, *lines = (await _call("list")).output.splitlines()
    assert head.split() == ["saved", "step", "metrics", "size", "run", "lineage", "path", "notes"]
    assert len(lines) == 5
    assert all(row["path"] in line for row, line in zip(rows, lines, strict=True))
    assert len(await _json("list", "--limit", "2")) == 2
    local.damage(_paths(local, supervisor)[4], "no_metadata")
    assert max(row["problem"] or "" for row in await _json("list")) == (
        "it has no tinker_recovery metadata"
    )


async def test_options_that_contradict_are_refused() -> None:
    both = await _call("list", "--run", "x", "--all")
    assert both.exit_code == 2
    assert "--run and --all do not go together" in both.output
    none = await _call("prune", "--yes")
    assert none.exit_code == 2
    assert "choose checkpoints with RUN, --lineage, or --all" in none.output
    for scope in (("--run", "x"), ("--all",), ("--lineage", "l")):
        twice = await _call("list", "sft-42", *scope)
        assert twice.exit_code == 2
        assert f"RUN and {scope[0]} do not go together" in twice.output


async def test_verify_gives_the_reason_for_each_bad_one_and_exits_1(local: LocalTinker) -> None:
    supervisor = await _trained()
    paths = _paths(local, supervisor)
    good = await _json("verify", "--all")
    assert [each["ok"] for each in good] == [True] * 5
    assert [verdict["level"] for verdict in good[0]["verdicts"]] == [
        "metadata",
        "listing",
        "weights",
    ]
    local.damage(paths[6], "no_metadata")
    found = {each["path"]: each["ok"] for each in await _json("verify", "--all", expect=1)}
    assert [path for path, ok in found.items() if not ok] == [paths[6]]
    shown = await _call("verify", paths[6], paths[8])
    assert shown.exit_code == 1
    assert "BAD" in shown.output
    assert "2 checkpoints, 1 bad" in shown.output


async def test_verify_shows_what_it_had_found_when_the_service_went_away(
    local: LocalTinker,
) -> None:
    first, second = [_paths(local, await _trained()) for _ in range(2)]
    local.damage(first[10], "no_metadata")
    gone = second[8].removeprefix("tinker://").split("/")[0]
    local.inject(FaultRule("status", request="run_checkpoints", run=gone, for_s=60.0))
    wanted = first[10], second[8], first[6]
    shown = await _call("verify", *wanted)
    assert shown.exit_code == 3
    assert "503" in shown.stderr
    assert "1 of 3 checkpoints looked at, 1 bad" in shown.stdout
    assert first[10] in shown.stdout
    assert first[6] not in shown.stdout
    (only,) = await _json("verify", *wanted, expect=3)
    assert (only["path"], only["ok"]) == (first[10], False)


@pytest.mark.parametrize(
    "words",
    [
        ("sft-42", "sft-43"),
        ("tinker://a:train:0/weights/b", "sft-42"),
        ("sft-42", "tinker://a:train:0/weights/b"),
    ],
)
async def test_verify_of_several_takes_paths_only(words: tuple[str, ...]) -> None:
    refused = await _call("verify", *words)
    assert refused.exit_code == 2
    assert "one RUN, or PATHs" in refused.stderr


async def test_verify_deep_reads_the_bytes_and_leaves_nothing_at_the_service(
    local: LocalTinker,
) -> None:
    supervisor = await _trained()
    paths = _paths(local, supervisor)
    (whole,) = await _json("verify", paths[10], "--deep")
    assert whole["verdicts"][-1]["level"] == "bytes"
    local.damage(paths[10], "truncated")
    (cut,) = await _json("verify", paths[10], "--deep", expect=1)
    assert not cut["ok"]
    assert "active" not in local.sessions().values()


async def test_prune_shows_first_and_deletes_only_what_no_rule_keeps(local: LocalTinker) -> None:
    supervisor = await _trained()
    paths = _paths(local, supervisor)
    assert (await _call("pin", paths[2])).exit_code == 0
    plan = await _json("prune", "--all", "--keep-last", "2", "--dry-run")
    assert [row["step"] for row in plan["to_delete"]] == [4, 6]
    assert plan["deleted"] == []
    assert len(_paths(local, supervisor)) == 5
    unasked = await _call("prune", "--all", "--keep-last", "2")
    assert unasked.exit_code == 2
    assert "--yes" in unasked.output
    done = await _json("prune", "--all", "--keep-last", "2", "--yes")
    assert sorted(done["deleted"]) == sorted([paths[4], paths[6]])
    assert done["bytes_freed"] > 0
    assert sorted(_paths(local, supervisor)) == [2, 8, 10]
    assert (await _call("unpin", paths[2])).exit_code == 0
    shown = await _call("prune", "--all", "--keep-last", "2", "--yes")
    assert "1 to delete" in shown.output
    assert sorted(_paths(local, supervisor)) == [8, 10]


async def test_prune_of_one_tinker_run_keeps_what_the_next_one_was_recovered_from(
    aged: tuple[LocalTinker, list[float]],
) -> None:
    """Also of a run that is not in this machine's journal: the service lists all of its lineage."""
    server, behind_s = aged
    server.inject(FaultRule("poison", request="optim_step", at_step=9))
    async with Supervisor(_from_step(6), journal=None) as supervisor:
        await supervisor.run(functools.partial(train, steps=12), **NAMED)
    behind_s[0] = 0.0
    first, last = supervisor.runs[0].segments
    done = await _json("prune", first.run_id, "--keep-last", "1", "--yes")
    assert done["deleted"]
    assert last.parent in {each.path for each in server.checkpoints(first.run_id)}


async def test_prune_knows_what_another_machine_has_trained_since(
    aged: tuple[LocalTinker, list[float]], tmp_path: Path
) -> None:
    server, behind_s = aged
    await _left(_from_step(6), 12)
    second = await _left(_from_step(6), 11, journal=tmp_path / "another machine.sqlite3")
    before, last = second.runs[0].segments
    young = await _json("prune", NAMED["name"], "--keep-last", "1", "--yes")
    assert young["deleted"] == [], "it may go on there"
    behind_s[0] = 0.0
    done = await _json("prune", NAMED["name"], "--keep-last", "1", "--keep-best", "0", "--yes")
    assert done["deleted"]
    assert [each.path for each in server.checkpoints(before.run_id)] == [last.parent]
    assert 10 in [each.steps for each in server.checkpoints(last.run_id)]


async def test_prune_leaves_alone_a_run_that_another_machine_trains_just_now(
    aged: tuple[LocalTinker, list[float]], tmp_path: Path
) -> None:
    server, behind_s = aged
    first = await _left(_from_step(6), 12)
    behind_s[0] = 0.0
    (segment,) = first.runs[0].segments
    stored = len(server.checkpoints(segment.run_id))

    async def training(attempt: Attempt) -> None:
        assert attempt.start_step == 6
        done = await _json("prune", NAMED["name"], "--keep-last", "1", "--yes")
        assert done["deleted"] == []
        (alone,) = done["left_alone"]
        assert alone["name"] == NAMED["name"]

    async with Supervisor(_from_step(6), journal=tmp_path / "another.sqlite3") as supervisor:
        await supervisor.run(training, **NAMED)
    assert len(server.checkpoints(segment.run_id)) == stored


async def test_prune_leaves_alone_what_another_machine_may_still_be_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with LocalTinker() as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        supervisor = await _trained(journal=None)  # not in this machine's journal
        plan = await _json("prune", "--all", "--keep-last", "1", "--yes")
        assert plan["to_delete"] == []
        assert len(_paths(server, supervisor)) == 5


async def test_prune_keeps_what_a_killed_run_would_resume_from(local: LocalTinker) -> None:
    """Its process ended before it could say that all before the newest save had succeeded."""

    async def ahead(attempt: Attempt) -> None:
        await _awaited(attempt, 8)
        await loop(attempt.client, 8, 9, 0)
        local.inject(FaultRule("pause", None, "optim_step", for_s=60.0))
        futures: list[Awaitable[object]] = []
        for step in 9, 10:
            futures.append(attempt.client.forward_backward(batch(step), "cross_entropy"))
            futures.append(attempt.client.optim_step(ADAM))
        local.release()
        for future in futures:
            await future

    supervisor = await _trained("sft-42", train=ahead)
    with closing(sqlite3.connect(default_path())) as database, database:
        database.execute("UPDATE runs SET state = 'training', detail = ''")
        database.execute("UPDATE attempts SET ended = NULL, outcome = NULL, sound_step = 6")
        database.execute("UPDATE leases SET holder = 'dead', pid = 4194305")
    pruned = await _json(
        "prune", "--run", "sft-42", "--keep-last", "1", "--keep-best", "1", "--yes"
    )
    assert len(pruned["deleted"]) == 3
    # The save at 10 was submitted when step 9 had been answered, and says so.
    assert sorted(_paths(local, supervisor)) == [8, 10]
    recover = functools.partial(CliRunner().invoke, main, ["recover", "sft-42", "--json"])
    shown = await anyio.to_thread.run_sync(recover)
    assert json.loads(shown.stdout)["step"] == 8


async def test_a_deletion_that_fails_is_reported_with_exit_status_1_and_done_by_the_next(
    local: LocalTinker,
) -> None:
    supervisor = await _trained()
    local.inject(FaultRule("status", request="delete", status=500, times=1))
    failed = await _json("prune", "--all", "--keep-last", "4", "--yes", expect=1)
    assert [each["path"] for each in failed["failed"]] == [_paths(local, supervisor)[2]]
    assert "500" in failed["failed"][0]["reason"]


async def test_what_a_prune_has_deleted_before_the_service_went_away_is_said(
    local: LocalTinker,
) -> None:
    supervisor = await _trained()
    # A deletion that takes long: then all is listed again, and that is refused.
    local.inject(FaultRule("slow", request="delete", delay_s=2.5, times=1))

    async def cut() -> None:
        while not local.stats.by_route.get("delete"):  # noqa: ASYNC110 - another thread's doing
            await anyio.sleep(0.02)
        local.inject(FaultRule("status", request="run_checkpoints", status=403, for_s=60.0))

    async with anyio.create_task_group() as group:
        group.start_soon(cut)
        done = await _call("prune", "--all", "--keep-last", "1", "--keep-best", "0", "--yes")
    left = len(_paths(local, supervisor))
    assert left < 5
    assert done.exit_code == 3
    assert f"{5 - left} deleted" in done.stderr


async def test_pins_of_what_is_not_there_are_refused_and_nothing_is_pinned(
    local: LocalTinker,
) -> None:
    supervisor = await _trained()
    path = _paths(local, supervisor)[2]
    wrong = await _call("pin", path, path + "x")
    assert wrong.exit_code == 1
    assert "is not listed" in wrong.output
    assert (await _call("unpin", path)).exit_code == 1
    for line in (await _call("pin", path + "x", "--json")).stderr.splitlines():
        assert json.loads(line) == {"error": f"{path}x is not listed by the service", "status": 1}
    with Journal(journal_path(STATE_FOLDER), service=local.base_url) as journal:
        assert journal.notes().pinned == {}
    malformed = await _call("pin", "step-5")
    assert malformed.exit_code == 2
    assert "tinker://RUN/weights/NAME" in malformed.output


async def test_what_is_pinned_does_not_expire(local: LocalTinker) -> None:
    given = policy(checkpoints=CheckpointPolicy(save_at_start=False, save_every=5, ttl_s=7200.0))
    async with Supervisor(given) as supervisor:
        await supervisor.run(functools.partial(train, steps=10), **NAMED)
    first, second = _paths(local, supervisor).values()
    run = supervisor.runs[0].segments[-1].run_id
    local.inject(FaultRule("status", request="set_ttl", status=405))
    refused = await _call("pin", second, "--json")
    assert refused.exit_code == 1
    shown = json.loads(refused.stdout)
    assert (shown["pinned"], shown["missing"]) == ([second], [])
    assert (
        "all the same: asked to keep it, the service answered HTTP 405" in shown["expiring"][second]
    )
    assert (await _call("pin", first)).exit_code == 0
    lasting = {each.path: each.expires for each in local.checkpoints(run)}
    assert lasting[first] is None
    assert lasting[second] is not None


async def test_a_service_out_of_reach_is_exit_status_3_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret")
    result = await _call("list")
    assert result.exit_code == 3
    assert "127.0.0.1:9 (TINKER_BASE_URL) cannot be reached: nothing listens" in result.output
    assert "tml-secret" not in result.output


@pytest.mark.usefixtures("local")
async def test_a_run_that_the_journal_knows_is_found_by_its_name() -> None:
    await _trained("sft-42")
    await _trained("other")
    assert len(await _json("list", "--run", "sft-42")) == 5
    assert len(await _json("list")) == 10


async def test_a_name_that_only_a_service_that_forgets_metadata_knows_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with LocalTinker(dialect="forgets_metadata") as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        await _trained("sft-42", journal=tmp_path / "another machine.sqlite3")
        assert [row["step"] for row in await _json("list", "--run", "sft-42")] == [10, 8, 6, 4, 2]
        assert (await _call("list", "--run", "sft-43")).exit_code == 1


async def test_a_run_that_only_the_service_knows_is_found_by_its_name_and_an_unknown_one_is_said(
    local: LocalTinker, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "another machine.sqlite3"
    supervisor = await _trained("sft-42", journal=elsewhere)
    assert len(await _json("list", "--run", "sft-42")) == 5
    assert {row["run"] for row in await _json("list")} == {"sft-42"}
    assert all(each["ok"] for each in await _json("verify", "--run", "sft-42"))
    for scope, said in (
        (("--run", "sft-43"), "there is no run 'sft-43'"),
        (("--run", "sft-43"), "did you mean sft-42?"),
        (("--run", "11111111-1111-1111-1111-111111111111:train:0"), "there is no run"),
        (("--lineage", "no-such"), "there is no run of lineage 'no-such'"),
    ):
        for command in (["list"], ["verify"], ["prune", "--dry-run"]):
            done = await _call(*command, *scope)
            assert (done.exit_code, done.stdout) == (1, "")
            assert said in done.stderr
    # With that machine's journal, its pins are known as well.
    path = _paths(local, supervisor)[2]
    given = ("--journal", str(elsewhere))
    assert (await _call("pin", path, *given)).exit_code == 0
    pinned = [row["path"] for row in await _json("list", *given) if row["pinned"]]
    assert pinned == [path]
    assert not any(row["pinned"] for row in await _json("list"))
    missing = await _call("list", "--journal", str(tmp_path / "no" / "journal.sqlite3"))
    assert missing.exit_code == 3
    assert "there is no journal at" in missing.stderr
    assert not (tmp_path / "no").exists()


async def test_a_run_is_an_argument_as_for_the_other_commands(local: LocalTinker) -> None:
    del local
    await _trained("sft-42")
    steps = [row["step"] for row in await _json("list", "sft-42")]
    assert steps == [row["step"] for row in await _json("list", "--run", "sft-42")]
    assert len(steps) == len(await _json("verify", "sft-42")) == 5
    assert len((await _json("prune", "sft-42", "--keep-last", "2", "--dry-run"))["to_delete"]) > 0
    for command in (["list"], ["verify"], ["prune", "--dry-run"]):
        unknown = await _call(*command, "sft-43")
        assert unknown.exit_code == 1
        assert "there is no run 'sft-43'" in unknown.stderr


async def test_a_run_at_another_service_is_said_to_be_there(
    serving: Callable[..., Any],
) -> None:
    async with serving() as first:
        await _trained("outs")
    async with serving() as second:
        for kind in ((), ("--kind", "sampler")):
            done = await _call("list", "outs", *kind)
            assert done.exit_code == 1
            assert f"there is no run 'outs' at {second.base_url}" in done.stderr
            assert f"the run of that name is at {first.base_url}" in done.stderr
            assert "did you mean outs" not in done.stderr
