"""What a user sees who begins with a wrong key or address: one error of ours, and what to do."""

from __future__ import annotations

import asyncio
import functools
import http.server
import itertools
import os
import pickle
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import inspection
import pytest
import tinker
from certificates import self_signed
from loops import MODEL, InstantClock, policy, quick, train, until
from pydantic import SecretStr
from tinker.types import RequestErrorCategory

from tinker_recovery import (
    Attempt,
    Clock,
    JournalError,
    RecoveryExhausted,
    ServiceUnusable,
    StartOptions,
    StatusUnavailable,
    Supervisor,
    UsageError,
)
from tinker_recovery.service import Endpoint, claims, contact
from tinker_recovery.service.contact import unusable_by
from tinker_recovery.testing import FaultRule, LocalTinker

WRONG = "tml-a-wrong-key-of-these-tests"

SCRIPT = """
import asyncio, sys
from tinker_recovery import Supervisor

async def train(attempt):
    raise AssertionError("it began")

async def main():
    async with Supervisor() as supervisor:
        await supervisor.run(train, base_model="Qwen/Qwen3-8B", rank=8, name=NAME)

NAME = sys.argv[1] or None
asyncio.run(main())
"""


async def _printed(base_url: str, name: str) -> str:
    """What a script prints that begins a run at this address."""
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(  # noqa: S603 - our own script
            [sys.executable, "-c", SCRIPT, name],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"TINKER_BASE_URL": base_url, "TINKER_API_KEY": WRONG},
        )
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-1].startswith("tinker_recovery.errors.")
    assert WRONG not in done.stderr
    return done.stderr


@contextmanager
def _page(status: int, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A web server that is no Tinker service; its address."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        do_GET = do_POST  # noqa: N815 - the base class's name

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as there
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    try:
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


@pytest.mark.parametrize("name", ["", "named"])
async def test_a_wrong_key_is_said_in_one_error_with_where_it_came_from_and_what_to_do(
    local: LocalTinker, name: str
) -> None:
    printed = await _printed(local.base_url, name)
    last = printed.rstrip().splitlines()[-1]
    assert "ServiceUnusable" in last
    for said in (local.base_url, "TINKER_BASE_URL", "HTTP 401", "that of TINKER_API_KEY"):
        assert said in last
    assert len(printed.splitlines()) <= 36
    assert "site-packages" not in printed
    assert "two machines" not in printed, "a wrong key says nothing of what the service can do"


@pytest.mark.parametrize("name", ["", "named"])
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (200, "there is no Tinker service at"),
        (404, "there is no Tinker service at"),
        (403, "does not allow this (HTTP 403)"),
    ],
)
async def test_an_address_of_something_else_is_said_with_the_address(
    name: str, status: int, said: str
) -> None:
    with _page(status) as address:
        printed = await _printed(address, name)
    last = printed.rstrip().splitlines()[-1]
    assert said in last
    assert address in last
    assert len(printed.splitlines()) <= 40


async def test_the_chain_below_is_kept_as_the_cause_and_with_its_tracebacks_as_text(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", WRONG)
    with pytest.raises(ServiceUnusable) as caught:
        async with Supervisor(quick()) as supervisor:
            await supervisor.run(train, base_model=MODEL)  # type: ignore[arg-type]  # it never begins
    assert isinstance(caught.value.__cause__, tinker.AuthenticationError)
    assert "tinker/_base_client.py" in caught.value.details
    assert WRONG not in caught.value.details
    assert local.runs() == []


async def test_a_key_of_service_is_named_as_that(local: LocalTinker) -> None:
    def service() -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=local.base_url, api_key=WRONG)

    with pytest.raises(ServiceUnusable, match="api_key= of the ServiceClient") as caught:
        async with Supervisor(quick(), service=service) as supervisor:
            await supervisor.run(train, base_model=MODEL)  # type: ignore[arg-type]  # it never begins
    assert "(base_url= of" in str(caught.value)


async def test_a_group_says_it_as_well(local: LocalTinker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", WRONG)
    with pytest.raises(ServiceUnusable, match="TINKER_API_KEY"):
        async with Supervisor(quick()) as supervisor:
            async for _ in supervisor.group([{"base_model": MODEL}, {"base_model": MODEL}]):
                pytest.fail("it began")
    assert local.runs() == []


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("name", [None, "named"])
async def test_a_port_where_nothing_listens_is_said_soon_and_waited_for_as_by_a_bare_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str | None
) -> None:
    monkeypatch.setattr(contact, "SAY_AFTER_S", 0.2)
    port = _closed_port()
    monkeypatch.setenv("TINKER_BASE_URL", f"http://user:pass-word@127.0.0.1:{port}")

    async def done(attempt: object) -> str:
        del attempt
        return "done"

    async def main() -> str:
        async with Supervisor(policy()) as supervisor:
            start: StartOptions = {"base_model": MODEL}
            return await supervisor.run(done, **(start | ({"name": name} if name else {})))

    server = LocalTinker(port=port)
    monkeypatch.setenv("TINKER_API_KEY", "tml-local-key")
    running = asyncio.create_task(main())
    await until(lambda: "has not begun" in caplog.text)
    assert not running.done()
    async with server:
        assert await running == "done"
    (said,) = [each.getMessage() for each in caplog.records if "has not begun" in each.msg]
    assert "nothing listens there (connection refused)" in said
    assert f"http://127.0.0.1:{port} (TINKER_BASE_URL)" in said
    assert "pass-word" not in caplog.text


@pytest.mark.parametrize("begins", ["well", "refused", "cancelled", "recovered"])
async def test_nothing_waits_to_say_it_once_the_beginning_is_over_well_or_not(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    waiting, begun = list[float](), list[float]()

    async def sleep(seconds: float) -> None:
        if seconds != contact.SAY_AFTER_S:
            await anyio.sleep(seconds)
            return
        waiting.append(seconds)
        begun.append(seconds)
        try:
            await anyio.sleep_forever()
        finally:
            waiting.pop()

    async def body(attempt: Attempt) -> None:
        del attempt
        await until(lambda: not waiting)

    if begins == "refused":
        monkeypatch.setenv("TINKER_API_KEY", WRONG)
    elif begins == "recovered":
        local.inject(FaultRule("fail", request="create_model"))
    elif begins == "cancelled":
        local.inject(FaultRule("slow", request="create_model", delay_s=60.0))
    async with Supervisor(quick(), clock=Clock(sleep=sleep)) as supervisor:
        limit_s = 1.0 if begins == "cancelled" else 30.0
        with suppress(ServiceUnusable), anyio.move_on_after(limit_s):
            await supervisor.run(body, base_model=MODEL, name="named")
        await until(lambda: not waiting)
    assert len(begun) == 1


async def test_who_begins_late_is_asked_why_at_the_time_of_the_clock_and_one_in_time_says_nothing(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    late, times = anyio.Event(), list[float]()

    async def sleep(seconds: float) -> None:
        if seconds != contact.SAY_AFTER_S:
            await anyio.sleep(seconds)
            return
        times.append(seconds)
        if len(times) == 1:
            await anyio.sleep_forever()
        late.set()

    async def body(attempt: Attempt) -> None:
        del attempt

    async with Supervisor(quick(), clock=Clock(sleep=sleep)) as supervisor:
        await supervisor.run(body, base_model=MODEL, name="in time")
        local.begin_outage(status=503)
        local.inject(FaultRule("status", status=503, times=10**6))
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(supervisor.run, body, base_model=MODEL, name="late"))
            await late.wait()
            group.cancel_scope.cancel()
        local.end_outage()
    assert times == [contact.SAY_AFTER_S] * 2
    assert "has not begun" not in caplog.text  # a 503 is no word about address or credential


@pytest.mark.parametrize("status", [None, 503])
async def test_a_named_run_waits_for_a_silent_service_no_longer_than_the_policy_says(
    monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    monkeypatch.setattr(claims, "LOOK_S", 0.05)
    monkeypatch.setenv("TINKER_API_KEY", "tml-local-key")
    with _page(status) if status else nullcontext(f"http://127.0.0.1:{_closed_port()}") as address:
        monkeypatch.setenv("TINKER_BASE_URL", address)
        with pytest.raises(ServiceUnusable) as caught, anyio.fail_after(30):
            async with Supervisor(policy(max_wait_s=0.3)) as supervisor:
                await supervisor.run(train, base_model=MODEL, name="named")  # type: ignore[arg-type]  # it never begins
    said = str(caught.value)
    assert said.startswith("run 'named' has not begun within 0.3 s (max_wait_s): the service at ")
    assert f"{address} (TINKER_BASE_URL)" in said
    assert ("HTTP 503" if status else "connection refused") in said
    assert ("run the same command again" if status else "set TINKER_BASE_URL") in said
    assert "\n" not in said
    assert "StatusUnavailable" in caught.value.details


async def test_an_outage_at_the_start_that_the_sdk_retries_through_is_no_refusal(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("status", request="create_session", status=503, times=2))

    async def done(attempt: object) -> str:
        del attempt
        return "done"

    async with Supervisor(quick()) as supervisor:
        assert await supervisor.run(done, base_model=MODEL) == "done"
    assert not supervisor.runs[0].recoveries


@pytest.mark.parametrize("way", ["named", "from_checkpoint", "strategy"])
async def test_what_is_read_before_a_run_begins_is_waited_for_through_an_outage(
    local: LocalTinker, way: str
) -> None:
    start: StartOptions = {"base_model": MODEL, "rank": 8}
    limits: dict[str, object] = {}
    async with Supervisor(quick()) as supervisor:
        await supervisor.run(functools.partial(train, steps=5), **start)
        (path,) = inspection.stored_paths(supervisor.runs[0])
    if way == "named":
        start |= {"name": "named"}
    elif way == "from_checkpoint":
        start = {"from_checkpoint": path}
    else:
        limits = {"checkpoint_strategy": path}
    request: Any = "checkpoints" if way == "named" else "run_checkpoints"
    local.inject(FaultRule("status", request=request, status=503, times=6))

    async def done(attempt: Attempt) -> int:
        return attempt.start_step

    async with Supervisor(quick(**limits)) as supervisor:
        assert await supervisor.run(done, **start) == (5 if way == "from_checkpoint" else 0)
    assert not supervisor.runs[0].recoveries


def _raised_from(*chain: BaseException) -> BaseException:
    for outer, inner in itertools.pairwise(chain):
        outer.__cause__ = inner
    return chain[0]


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("no such name", "the name of the host does not resolve"),
        ("TLS at a plain port", "the encrypted connection (TLS) cannot be set up"),
        ("a certificate of nobody's", "the encrypted connection (TLS) cannot be set up"),
        ("silent", "nothing answers in time"),
    ],
)
async def test_how_a_service_is_out_of_reach_is_said_of_real_sockets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str, said: str
) -> None:
    monkeypatch.setattr(claims, "LOOK_S", 0.05)
    monkeypatch.setenv("TINKER_API_KEY", WRONG)
    with ExitStack() as stack:
        if way == "no such name":
            address = "http://nothing.invalid"
        elif way == "silent":
            silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        elif way == "a certificate of nobody's":
            address = stack.enter_context(_page(404, self_signed(tmp_path)[1]))
        else:
            address = stack.enter_context(_page(404)).replace("http:", "https:")
        monkeypatch.setenv("TINKER_BASE_URL", address)
        limits = policy(max_wait_s=0.1, status_timeout_s=1.0)
        with pytest.raises(ServiceUnusable) as caught, anyio.fail_after(50):
            async with Supervisor(limits) as supervisor:
                await supervisor.run(train, base_model=MODEL, name="named")  # type: ignore[arg-type]  # it never begins
    assert f"the service at {address} (TINKER_BASE_URL) cannot be reached: {said}" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert WRONG not in str(caught.value) + caught.value.details


REFUSED = tinker.RequestFailedError("no", request_id="r", category=RequestErrorCategory.User)
REQUEST = httpx.Request("POST", "http://host/api/v1/client/config")


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        (
            [tinker.APIConnectionError(request=REQUEST), socket.gaierror(-2, "not known")],
            "does not resolve",
        ),
        (
            [tinker.APIConnectionError(request=REQUEST), ssl.SSLError("wrong version number")],
            "TLS",
        ),
        ([StatusUnavailable("reading x"), httpx.ConnectError("CERTIFICATE_VERIFY_FAILED")], "TLS"),
        ([tinker.APITimeoutError(request=REQUEST)], "nothing answers in time"),
        ([StatusUnavailable("reading x"), TimeoutError()], "nothing answers in time"),
        ([tinker.APIConnectionError(request=REQUEST), ConnectionRefusedError()], "refused"),
        ([httpx.RemoteProtocolError("closed")], "broke off"),
        ([StatusUnavailable("reading x: HTTP 503", status_code=503)], None),
        ([ValueError("the user's own")], None),
        (
            [
                tinker.RequestFailedError(
                    "no model", request_id="r", category=RequestErrorCategory.User
                )
            ],
            None,
        ),
    ],
    ids=str,
)
def test_how_a_service_is_out_of_reach_is_read_off_the_chain(
    chain: list[BaseException], said: str | None
) -> None:
    endpoint = Endpoint("http://host", SecretStr(WRONG), url_from="TINKER_BASE_URL")
    found = unusable_by(_raised_from(*chain), endpoint)
    assert (found is None) if said is None else (said in (found or ""))


async def test_an_exhausted_run_says_each_failure_once_and_what_to_do_next(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", request="create_model", times=99))
    clock = InstantClock(poll_interval_s=60.0).clock
    with pytest.raises(RecoveryExhausted) as caught:
        async with Supervisor(policy(max_attempts=3), clock=clock) as supervisor:
            await supervisor.run(train, base_model=MODEL, name="gone")  # type: ignore[arg-type]  # it never begins
    said = str(caught.value)
    assert "(4 times" in said
    assert "run the same command again" in said
    assert "max_attempts" in said
    assert "tinker-recovery show gone" in said


@pytest.mark.parametrize("command", [["checkpoints", "list"], ["recover", "a-run"], ["doctor"]])
@pytest.mark.parametrize("verbose", [False, True])
async def test_a_command_says_it_in_one_line_and_with_v_shows_the_chain(
    local: LocalTinker, command: list[str], *, verbose: bool
) -> None:
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "tinker_recovery.cli", *["-v"][: int(verbose)], *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"TINKER_API_KEY": WRONG},
        )
    )
    printed = done.stdout + done.stderr
    said = [each for each in printed.splitlines() if local.base_url in each]
    assert any("TINKER_API_KEY" in each for each in said)
    assert done.returncode == 3
    assert ("Traceback" in printed) is verbose
    assert WRONG not in printed


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("wrong", ["journal", "credential"])
async def test_what_is_wrong_on_entry_is_said_without_the_frames_of_what_is_below(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
    *,
    blocking: bool,
) -> None:
    if wrong == "credential":
        monkeypatch.delenv("TINKER_API_KEY")

    async def enter() -> None:
        # A folder is no file that can be opened.
        supervisor = Supervisor(journal=tmp_path if wrong == "journal" else None)
        if not blocking:
            async with supervisor:
                pass
        else:

            def block() -> None:
                with supervisor:
                    pass

            await anyio.to_thread.run_sync(block)

    kind = JournalError if wrong == "journal" else UsageError
    with pytest.raises(kind) as caught:
        await enter()
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert len([each for each in frames if "/tinker_recovery/" in each.filename]) == 1
    cause = caught.value.__cause__
    assert cause is None or cause.__traceback__ is None
    if isinstance(caught.value, JournalError):
        assert "in _open" in caught.value.details, "what is left out can be looked at"
        assert pickle.loads(pickle.dumps(caught.value)).details == caught.value.details  # noqa: S301 - our own
