"""Faults from outside: given to the server when it starts, or injected while it runs."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio.to_thread
import httpx
import pytest
from click.testing import CliRunner
from loops import MODEL, quick, train

from tinker_recovery import Attempt, Supervisor
from tinker_recovery.cli import main
from tinker_recovery.testing import FaultRule, LocalTinker
from tinker_recovery.testing._control_routes import is_local

COMMAND = [sys.executable, "-m", "tinker_recovery.cli"]
KEY = "tml-local-key"


@contextmanager
def _serving(*arguments: str, said: list[str] | None = None) -> Iterator[str]:
    with subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, "serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            while "TINKER_BASE_URL=" not in (line := server.stdout.readline()):
                assert line, server.communicate()[1]
            yield line.split("TINKER_BASE_URL=")[1].split()[0]
        finally:
            server.terminate()
            (said if said is not None else []).extend(server.stdout.read().splitlines())


async def _kinds(monkeypatch: pytest.MonkeyPatch, url: str, **start: Any) -> list[str]:
    """The faults that a run there recovers from."""
    monkeypatch.setenv("TINKER_BASE_URL", url)
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    async with Supervisor(quick()) as supervisor:
        await supervisor.run(functools.partial(train, steps=22), base_model=MODEL, rank=8, **start)
    return [each.fault.kind.value for each in supervisor.runs[0].recoveries]


async def test_a_server_is_started_with_its_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with _serving("--fault", "poison@7", "--fault", "gone:forward_backward@12", said=said) as url:
        assert await _kinds(monkeypatch, url) == ["request_failed", "gone"]
    poison, gone = (line.partition(" ")[2] for line in said if " strikes " in line and ":" in line)
    assert re.fullmatch(r"poison strikes \w+ at step 7 of session-\w+:train:0", poison)
    assert re.fullmatch(r"gone strikes \w+ at step 12 of session-\w+:train:0", gone)


async def test_the_server_names_the_run_that_a_fault_strikes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    with _serving("--fault", "poison@7", "--fault", "gone:forward_backward@12", said=said) as url:
        await _kinds(monkeypatch, url, name="sft-42")
    strikes = [line for line in said if " strikes " in line and ":" in line]
    assert len(strikes) == 2
    for line in strikes:
        assert re.search(r" at step (7|12) of sft-42, session-\w+:train:0$", line)


async def test_a_fault_that_lasts_is_said_once_by_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    with _serving("--fault", "status:optim_step@3,status=503,times=3", said=said) as url:
        assert await _kinds(monkeypatch, url) == []
    assert len([line for line in said if "status strikes optim_step at step 3 of" in line]) == 1


async def test_one_is_injected_into_a_run_by_its_name(local: LocalTinker) -> None:
    said: list[str] = []

    async def struck(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        if attempt.number == 1:
            done = await anyio.to_thread.run_sync(
                lambda: CliRunner().invoke(
                    main, ["inject", local.base_url, "poison", "sft-42", "--api-key", local.api_key]
                )
            )
            assert done.exit_code == 0, done.output
            said.append(done.output)
        await train(attempt, steps=22)

    async with Supervisor(quick()) as supervisor:
        await supervisor.run(struck, base_model=MODEL, rank=8, name="sft-42")
    (run,) = supervisor.runs
    assert [each.fault.kind for each in run.recoveries] == ["request_failed"]
    (fired,) = local.fired
    assert fired.rule == FaultRule("poison", run=run.segments[0].run_id, follow=True)
    status, unknown = await anyio.to_thread.run_sync(
        lambda: _inject(local.base_url, "poison", "nobody")
    )
    assert status == 1
    assert "there is no run 'nobody'" in unknown
    status, elsewhere = await anyio.to_thread.run_sync(
        lambda: _inject("http://127.0.0.1:1", "poison", "sft-42")
    )
    assert status == 1
    assert "there is no run 'sft-42' at http://127.0.0.1:1 in " in elsewhere
    assert f"the run of that name is at {local.base_url}" in elsewhere
    where = "in whichever Tinker run it is by then"
    assert said == [f"poison strikes the next request of sft-42, {where}\n"]


async def test_one_for_a_later_step_strikes_the_run_after_its_recoveries(
    local: LocalTinker,
) -> None:
    """The first of them goes back to a checkpoint of an earlier Tinker run than the newest."""

    async def struck(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        if attempt.number == 2:
            rules = [
                ["poison:optim_step@18", "sft-42"],
                ["poison:optim_step@20", str(attempt.client.model_id)],  # not it by then
                ["poison:optim_step@8"],
            ]
            for rule in rules:
                arguments = [local.base_url, *rule, "--api-key", local.api_key]
                await anyio.to_thread.run_sync(functools.partial(_inject, *arguments))
        await train(attempt, steps=22)

    local.inject(FaultRule("poison", 6, "optim_step"))
    async with Supervisor(quick()) as supervisor:
        await supervisor.run(struck, base_model=MODEL, rank=8, name="sft-42")
    (run,) = supervisor.runs
    assert [(each.step, each.run) for each in local.fired] == [
        (6, run.segments[0].run_id),
        (8, run.segments[1].run_id),
        (18, run.segments[2].run_id),
    ]


def _inject(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["inject", *arguments])
    return done.exit_code, done.output


async def test_it_prints_the_rule_as_json_and_takes_its_fields(local: LocalTinker) -> None:
    url = local.base_url
    arguments = [url, "status:optim_step@12,status=503,times=3", "--api-key", local.api_key]
    status, said = await anyio.to_thread.run_sync(lambda: _inject(*arguments, "--json"))
    assert status == 0, said
    rule = json.loads(said)["rule"]
    assert (rule["action"], rule["request"], rule["at_step"]) == ("status", "optim_step", 12)
    assert (rule["status"], rule["times"], rule["run"]) == (503, 3, None)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["http://service.example", "poison"], 2, "127.0.0.1"),
        (["LOCAL", "explode"], 2, "action='explode' is not allowed: poison, "),
        (["LOCAL", "poison@soon"], 2, "'soon' is not a step"),
        (["LOCAL", "poison,colour=red"], 2, "'colour' is no field"),
        (["LOCAL", "poison", "nobody"], 3, "there is no journal"),
        (["http://127.0.0.1:1", "poison"], 1, "no local Tinker server answers"),
        (["LOCAL", "poison", "--api-key", "wrong"], 1, "HTTP 401"),
    ],
)
async def test_what_is_wrong_is_said(
    local: LocalTinker, arguments: list[str], status: int, said: str
) -> None:
    given = [local.base_url if each == "LOCAL" else each for each in arguments]
    if "--api-key" not in given:
        given += ["--api-key", local.api_key]
    got = await anyio.to_thread.run_sync(lambda: _inject(*given))
    assert got[0] == status, got
    assert said in got[1]


def test_a_wrong_fault_of_serve_is_refused_before_it_listens() -> None:
    done = CliRunner().invoke(main, ["serve", "--fault", "poison@soon"])
    assert done.exit_code == 2
    assert "'soon' is not a step" in done.output


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("poison", FaultRule("poison")),
        ("poison@70", FaultRule("poison", 70)),
        ("gone:forward_backward@12", FaultRule("gone", 12, "forward_backward")),
        ("poison@7,quiet=true", FaultRule("poison", 7, quiet=True)),
        ("slow,delay_s=0.5", FaultRule("slow", delay_s=0.5)),
        ("fail,message=no more,times=2", FaultRule("fail", message="no more", times=2)),
    ],
)
def test_a_fault_is_written_as_one_word(text: str, rule: FaultRule) -> None:
    assert FaultRule.parse(text) == rule


async def test_the_routes_that_control_it_answer_this_machine_alone(local: LocalTinker) -> None:
    """Bound to another address, whoever reaches it could do as they like with what runs there."""
    assert is_local("127.0.0.1")
    assert is_local("::1")
    assert is_local("::ffff:127.0.0.1")
    assert not is_local("10.0.0.7")
    assert not is_local("")
    async with httpx.AsyncClient(base_url=local.base_url) as http:
        reply = await http.get("/testing/faults", headers={"X-API-Key": local.api_key})
    assert reply.is_success
