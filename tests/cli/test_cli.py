"""The commands, run as a user runs them: in a process of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import anyio.to_thread
import click
import httpx
import pytest
import tinker
from _receiver import http_receiver
from click.testing import CliRunner
from loops import MODEL, batch, process

from tinker_recovery.cli import main
from tinker_recovery.cli.plot import Mark, axis, curve, replays
from tinker_recovery.faults import TABLE
from tinker_recovery.testing import DIALECTS

COMMAND = [sys.executable, "-m", "tinker_recovery.cli"]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=50, check=False
    )


def test_the_demo_ends_with_identical_weights_and_says_so_in_one_json_object() -> None:
    done = _run("demo", "--steps", "20", "--save-every", "5", "--pace", "0", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {key: type(value) for key, value in result.items()} == {
        "steps": int,
        "recoveries": int,
        "replayed_steps": int,
        "lost_steps": int,
        "weights_identical": bool,
        "detection_s": list,
        "handover_s": list,
        "optimizer_restored": bool,
    }
    assert result["weights_identical"] is True
    assert result["optimizer_restored"] is True
    assert (result["steps"], result["recoveries"], result["lost_steps"]) == (20, 2, 0)
    assert result["replayed_steps"] > 0
    assert len(result["detection_s"]) == len(result["handover_s"]) == 2
    assert all(0 <= seconds < 10 for seconds in result["detection_s"] + result["handover_s"])
    assert "loss, undisturbed" in done.stderr, "the curves are on stderr"


def test_the_demo_sends_its_traces_to_a_collector_and_says_where_to_look() -> None:
    with http_receiver() as received:
        done = _run(
            *("demo", "--steps", "10", "--poison", "4", "--save-every", "3", "--pace", "0"),
            *("--otlp", received.endpoint, "--otlp-protocol", "http/protobuf"),
        )
    assert done.returncode == 0, done.stderr
    assert "service 'tinker-recovery-demo'" in done.stdout.replace("\n", " ")
    assert "http://localhost:16686" in done.stdout.replace("\n", " ")
    (recovery,) = (span for span in received.spans() if span["name"] == "recovery")
    assert recovery["resource"]["service.name"] == "tinker-recovery-demo"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["demo", "--otlp", "localhost:4317"], "http://HOST:PORT"),
        (["demo", "--steps", "10", "--poison", "12"], "12 is not below --steps 10"),
        (["serve", "--dialect", "klingon"], "'klingon' is not one of hosted, forgets_metadata"),
        (["serve", "--heartbeat-limit", "0"], "0.0 is not in the range x>0"),
        (["serve", "--pace", "-1"], "-1.0 is not in the range 0<=x<=60"),
        (["serve", "--port", "65536"], "65536 is not in the range 0<=x<=65535"),
        (["serve", "--root", "/dev/null/runs"], "cannot be used (Not a directory)"),
    ],
)
def test_a_wrong_option_is_refused_with_the_value_and_status_2(
    command: list[str], said: str
) -> None:
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert said in done.stderr


def test_the_table_of_faults_is_printed_from_the_code_for_people_and_for_machines() -> None:
    done = CliRunner().invoke(main, ["faults", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["kind"] for row in rows] == [row.kind.value for row in TABLE]
    assert {row["verdict"] for row in rows} == {"recover", "wait", "give_up"}
    shown = _run("faults")
    assert shown.returncode == 0
    assert all(row.kind.value in shown.stdout for row in TABLE)


@pytest.mark.parametrize(
    "arguments", [[], ["demo"], ["export"], ["faults"], ["inject"], ["serve"], ["run"]]
)
def test_help_says_what_a_command_does_and_its_exit_status(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, [*arguments, "--help"])
    assert done.exit_code == 0
    assert "Usage: " in done.output
    if arguments:
        assert "Exit status" in done.output


def test_the_lines_of_an_example_stay_lines_in_every_help() -> None:
    context = click.Context(main)
    commands = [main.get_command(context, name) for name in main.list_commands(context)]
    for command in commands:
        assert command is not None
        each_of_them = command.commands.values() if isinstance(command, click.Group) else ()
        for each in (command, *each_of_them):
            text = each.get_help(click.Context(each, info_name=each.name))
            assert "\\b" not in text
            assert "\b" not in text
    shown = CliRunner().invoke(main, ["doctor", "--help"]).output
    assert "\n      tinker-recovery serve\n      tinker-recovery serve --cold-optimizer\n" in shown


def _commands(command: click.Command, context: click.Context) -> Iterator[click.Command]:
    if not isinstance(command, click.Group):
        yield command
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from _commands(below, click.Context(below, parent=context, info_name=name))


def test_every_command_can_be_read_by_a_program() -> None:
    every = list(_commands(main, click.Context(main)))
    assert len(every) > 20
    lacking = [each.name for each in every if not any("--json" in of.opts for of in each.params)]
    assert lacking == []


def test_the_help_of_serve_lists_every_dialect() -> None:
    shown = " ".join(CliRunner().invoke(main, ["serve", "--help"]).output.split())
    assert ", ".join(DIALECTS) in shown


def _running(*arguments: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """A command that runs until it is stopped, whose output can be read."""
    return process([*COMMAND[1:], *arguments], stdout=subprocess.PIPE)


def test_serve_says_how_to_reach_it_and_stops_cleanly_on_ctrl_c() -> None:
    with _running("serve", "--dialect", "bare", "--fault", "gone:forward_backward@12") as server:
        assert server.stdout is not None
        line = ""
        while "TINKER_BASE_URL" not in line:
            line = server.stdout.readline()
        found = re.search(r"TINKER_BASE_URL=(\S+) TINKER_API_KEY=(\S+)", line)
        assert found is not None
        url, key = found.groups()
        server.stdout.readline()
        assert server.stdout.readline() == (
            "gone strikes a forward_backward at step 12, of whichever run gets there first\n"
        )
        reply = httpx.get(f"{url}/api/v1/training_runs", headers={"X-API-Key": key})
        assert reply.json()["training_runs"] == []
        missing = httpx.post(f"{url}/api/v1/sessions/search", headers={"X-API-Key": key}, json={})
        assert missing.status_code == 404, "a bare service has no search"
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=10) == 0


def test_serve_tells_a_program_how_to_reach_it_and_what_has_struck() -> None:
    with _running("serve", "--json", "--fault", "status:create_session,status=400") as server:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        assert [rule["action"] for rule in ready["faults"]] == ["status"]
        url, key = (ready["environment"][f"TINKER_{name}"] for name in ("BASE_URL", "API_KEY"))
        asked = httpx.post(f"{url}/api/v1/create_session", headers={"X-API-Key": key}, json={})
        assert asked.status_code == 400
        fired = json.loads(server.stdout.readline())["fired"]
        assert (fired["request"], fired["rule"]["status"]) == ("create_session", 400)
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=10) == 0


async def test_serve_has_each_step_take_as_long_as_its_pace_says() -> None:
    with _running("serve", "--pace", "0.3") as server:
        assert server.stdout is not None
        line = ""
        while "TINKER_BASE_URL" not in line:
            line = await anyio.to_thread.run_sync(server.stdout.readline)
        found = re.search(r"TINKER_BASE_URL=(\S+) TINKER_API_KEY=(\S+)", line)
        assert found is not None
        url, key = found.groups()
        service = tinker.ServiceClient(base_url=url, api_key=key)
        client = await service.create_lora_training_client(MODEL, rank=8)
        began = time.monotonic()
        await client.forward_backward(batch(0), "cross_entropy")
        assert time.monotonic() - began >= 0.3
        await service.close("success")


def test_serve_on_a_port_that_is_taken_says_so_and_what_to_do() -> None:
    import socket  # noqa: PLC0415 - for this one test

    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = _run("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "choose another --port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [[], ["watch"], ["runs"], ["report"]])
def test_the_commands_list_their_help_without_importing_the_sdk(command: list[str]) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from tinker_recovery.cli import main; "
        f"CliRunner().invoke(main, {[*command, '--help']}); "
        "print(bool({'uvicorn', 'tinker', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
        env={**os.environ, "TINKER_TELEMETRY": "0"},
    )
    assert done.stdout.strip() == "False"


def test_a_falling_curve_begins_at_the_top_left_and_ends_at_the_bottom_right() -> None:
    lines = curve([3.0, 2.0, 1.0, 0.0], width=10, height=3)
    assert [len(line) for line in lines] == [10, 10, 10]
    blank = chr(0x2800)
    assert lines[0][0] != blank
    assert lines[-1][-1] != blank
    assert lines[0][-1] == blank
    assert lines[-1][0] == blank


def test_a_flat_curve_and_one_of_a_single_value_are_drawn_too() -> None:
    for values in ([1.0, 1.0], [5.0]):
        assert any(character != chr(0x2800) for character in curve(values, width=4, height=2)[0])


def test_the_axis_begins_at_zero_and_ends_at_the_last_step() -> None:
    line = axis(60, width=40)
    assert line.split() == ["0", "15", "30", "45", "60"]


def test_a_recovery_is_an_arrow_from_where_it_struck_back_to_where_the_loop_went_on() -> None:
    (line,) = replays([Mark(at=20, back_to=10)], 40, width=41)
    assert line.index("◄") == 10
    assert line.index("✗") == 20
    (spot,) = replays([Mark(at=10, back_to=10)], 40, width=41)
    assert spot.index("✗") == 10


@pytest.mark.parametrize("command", [["runs"], ["show", "sft-42"], ["watch", "--once"]])
@pytest.mark.parametrize("verbose", [False, True])
def test_with_v_a_command_shows_what_an_error_of_the_journal_came_of(
    tmp_path: Path, command: list[str], *, verbose: bool
) -> None:
    journal = tmp_path / "journal.sqlite3"
    journal.write_bytes(b"no database " * 1000)
    done = CliRunner().invoke(main, [*["-v"][: int(verbose)], *command, "--journal", str(journal)])
    assert done.exit_code == 3
    assert f"Error: the journal {journal}" in done.stderr
    assert ("sqlite3.DatabaseError" in done.stderr) is verbose


@pytest.mark.parametrize(
    "command",
    [["demo"], ["demo", "--json"], ["serve"], ["inject", "http://127.0.0.1:1", "poison@5"]],
)
def test_a_command_that_needs_the_local_server_says_which_extra_to_install(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = "tinker_recovery.testing", "starlette"
    for name in [each for each in sys.modules if each.startswith(gone)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    said = refused.output.replace("\\", "")  # of JSON
    assert 'needs starlette: pip install "tinker-recovery[local]"' in said
    assert "Traceback" not in refused.output
