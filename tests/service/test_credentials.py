"""Whose credential our own requests carry, and what happens when it is refused."""

from __future__ import annotations

import base64
import errno
import json
import logging
import shlex
import subprocess
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest
import tinker
from loops import until
from pydantic import SecretStr

from tinker_recovery import StatusRefused, StatusUnavailable, Supervisor, UsageError
from tinker_recovery.faults import Kind, SeenIn, judge
from tinker_recovery.service import Endpoint, StatusReader, TinkerBackend
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.testing import LocalTinker

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries", "bare")

KEY = "tml-a-key-of-these-tests"
NEW = "tml-another-key-of-these-tests"
COMMAND = "TINKER_CREDENTIAL_CMD"
RUNS = {"training_runs": [], "cursor": {"offset": 0, "limit": 100, "total_count": 0}}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credential at all: neither in the environment nor stored."""
    for name in ("TINKER_API_KEY", COMMAND):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def _store(home: Path, text: str, encoding: str = "utf-8") -> None:
    folder = home / ".tinker"
    folder.mkdir()
    (folder / "credentials.json").write_text(text, encoding)


def _jwt(**claims: float) -> str:
    parts = ({"alg": "none"}, claims)
    texts = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts)
    return b".".join([*(text.rstrip(b"=") for text in texts), b"signed"]).decode()


def _runs(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


class Service:
    """One that wants tokens: what it was sent, and what it answers."""

    def __init__(self, **config: object) -> None:
        self.config = {"pjwt_auth_enabled": True} | config
        self.sent: list[tuple[str, str]] = []
        self.answers: dict[str, Callable[[str], httpx.Response]] = {}

    def reply(self, request: httpx.Request) -> httpx.Response:
        name, given = request.url.path.rpartition("/")[2], request.headers["X-API-Key"]
        self.sent.append((name, given))
        if name in self.answers:
            return self.answers[name](given)
        body = {"config": self.config, "token": {"jwt": f"token {len(self.sent)}"}}.get(name, RUNS)
        return httpx.Response(200, json=body)

    def reader(
        self,
        key: str | None,
        *,
        timeout_s: float = 5.0,
        renew: Callable[[], Endpoint] | None = None,
    ) -> StatusReader:
        """A reader of it, by a key."""
        endpoint = Endpoint("http://127.0.0.1:1", key and SecretStr(key), renew=renew)  # type: ignore[arg-type]  # None or the key
        transport = httpx.MockTransport(self.reply)
        return StatusReader(endpoint, timeout_s=timeout_s, transport=transport)

    def asked(self, name: str) -> list[str]:
        """What was sent with each request for this."""
        return [given for asked, given in self.sent if asked == name]


@asynccontextmanager
async def _reading(
    server: LocalTinker, *keys: str
) -> AsyncIterator[tuple[StatusReader, list[str]]]:
    """A reader by a factory that returns these keys, one after the other, and those it gave."""
    left, given = list(keys), list[str]()

    def service() -> tinker.ServiceClient:
        given.append(left.pop(0) if len(left) > 1 else left[0])
        return tinker.ServiceClient(base_url=server.base_url, api_key=given[-1])

    async with StatusReader(await TinkerBackend(service).endpoint()) as reader:
        yield reader, given


async def test_entering_without_any_credential_is_refused_with_every_place_for_one(
    server: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
    with pytest.raises(UsageError) as caught:
        async with Supervisor():
            pytest.fail("it was entered")
    said = str(caught.value)
    assert said.startswith("there is no API key for the service: set TINKER_API_KEY to your key ")
    assert len(said) <= 180, "the first thing to do is not lost in it"
    for place in ("TINKER_API_KEY", COMMAND, "tinker auth login", "api_key="):
        assert place in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert server.sessions() == {}


@pytest.mark.parametrize("key", ["a-secret-of-some-form", _jwt(exp=1.0), "eyJ-no-token-at-all"])
async def test_entering_with_a_key_that_the_sdk_never_sends_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", key)
    with pytest.raises(UsageError, match="TINKER_API_KEY") as caught:
        async with Supervisor():
            pytest.fail("it was entered")
    assert key not in repr(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
async def test_a_file_of_stored_credentials_that_cannot_be_read_is_refused_without_showing_it(
    tmp_path: Path, encoding: str
) -> None:
    stored = {"default": "a", "keys": {"a": {"key": "some-secret-text"}}}
    _store(tmp_path, json.dumps(stored), encoding)
    with pytest.raises(UsageError, match=r"credentials\.json") as caught:
        async with Supervisor():
            pytest.fail("it was entered")
    assert "some-secret-text" not in "".join(traceback.format_exception(caught.value))


async def test_a_stored_key_is_the_credential_of_our_own_requests_too(
    server: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"a": {"type": "manual", "key": server.api_key, "name": "mine"}}
    _store(tmp_path, json.dumps({"default": "a", "keys": kept}))
    monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
    async with StatusReader(await TinkerBackend().endpoint()) as reader:
        assert [run async for run in reader.runs()] == []


async def test_what_cannot_be_deleted_for_want_of_a_credential_is_said_and_raises_nothing(
    server: LocalTinker,
) -> None:
    """It is done last, after all that it was for: what was made of it is as good as ever."""
    async with StatusReader(Endpoint(server.base_url, None)) as reader:
        why = await CheckpointCalls(reader.http).remove("tinker://r/weights/n", deadline_s=5.0)
    assert why is not None
    assert why.startswith("there is no API key for the service")


@pytest.mark.parametrize(
    ("source", "key", "exchanged"),
    [
        ("api_key", None, "tml-from-the-command"),
        ("api_key", KEY, KEY),
        ("credential_cmd", KEY, "tml-from-the-command"),
        ("credential_cmd", _jwt(exp=4e9), _jwt(exp=4e9)),
        ("api_key", "not-a-key-at-all", "tml-from-the-command"),
    ],
)
async def test_what_is_exchanged_for_a_token_is_what_the_sdk_would_exchange(
    monkeypatch: pytest.MonkeyPatch, source: str, key: str | None, exchanged: str
) -> None:
    monkeypatch.setenv(COMMAND, "echo tml-from-the-command")
    service = Service(credential_default_source=source)
    async with service.reader(key) as reader:
        await reader.run_page(0)
    assert service.asked("token") == [exchanged]
    by_key = key is not None and key.startswith(("tml-", "eyJ"))
    assert service.asked("config") == [key if by_key else "tml-from-the-command"]
    assert service.asked("training_runs") == ["token 2"]


async def test_a_service_that_takes_keys_alone_is_not_sent_what_a_command_prints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(COMMAND, "echo tml-from-the-command")
    service = Service(pjwt_auth_enabled=False)
    async with service.reader(None) as reader:
        with pytest.raises(StatusRefused, match="TINKER_API_KEY"):
            await reader.run_page(0)
    assert service.asked("training_runs") == []


async def test_a_slow_command_holds_up_no_event_loop_and_serves_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(COMMAND, "sleep 2; echo tml-from-the-command")
    service = Service()
    async with service.reader(None, timeout_s=0.2) as reader:
        unreachable: list[str] = []
        reader.http.unreachable = lambda how, _: unreachable.append(how)
        began = time.monotonic()
        with pytest.raises(StatusUnavailable, match=r"0\.2 s"):
            await reader.run_page(0)
        assert time.monotonic() - began < 1.8
        with anyio.fail_after(5):
            while not service.sent:  # noqa: ASYNC110 - the transport of httpx cannot set an event
                await anyio.sleep(0.05)
        await reader.run_page(0)
    assert len(service.asked("config")) == 1, "one command, for both"
    assert unreachable == [], "the command was slow, and not the service"


async def test_a_command_that_does_not_end_is_ended_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    monkeypatch.setenv(COMMAND, f"sleep 600 & echo $! > {shlex.quote(str(pid))}; wait")
    threads = threading.active_count()
    async with Service().reader(None, timeout_s=0.3) as reader:
        with pytest.raises(StatusUnavailable):
            await reader.run_page(0)
        child = int(pid.read_text())
        assert _runs(child)
    await until(lambda: not _runs(child))
    assert threading.active_count() <= threads + 1, "a worker thread of anyio's, at rest"


@pytest.mark.parametrize(
    "command", ["true", "false", "printf 'tml-two\\nsecret-lines'", "printf 'tml-\\377'"]
)
async def test_a_command_that_prints_no_credential_is_tried_again_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(COMMAND, command)
    async with Service().reader(None) as reader:
        with pytest.raises(StatusUnavailable, match=COMMAND) as caught:
            await reader.run_page(0)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "secret-lines" not in shown
    assert "printf" not in shown, "a command line may hold a secret itself"


async def test_a_command_that_cannot_be_started_just_now_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(COMMAND, "echo tml-secret-words")

    def no_memory(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    async with Service().reader(None) as reader:
        with monkeypatch.context() as short, pytest.raises(StatusUnavailable) as caught:
            short.setattr(subprocess, "Popen", no_memory)
            await reader.run_page(0)
        assert "could not be started: Cannot allocate memory" in str(caught.value)
        await reader.run_page(0)


async def test_a_key_that_is_refused_is_asked_for_again_once_by_all_who_met_it(
    server: LocalTinker,
) -> None:
    async with _reading(server, server.api_key, NEW) as (reader, given):
        await reader.run_page(0)
        server.change_key(NEW)
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(reader.run_page, 0)
    assert given[1:] == [NEW]


async def test_a_key_that_is_refused_before_the_first_request_is_asked_for_again(
    server: LocalTinker,
) -> None:
    async with _reading(server, KEY, server.api_key) as (reader, given):
        await reader.run_page(0)
    assert given == [KEY, server.api_key]


async def test_a_key_that_stays_refused_is_refused_after_one_more_look(
    server: LocalTinker,
) -> None:
    async with _reading(server, KEY) as (reader, given):
        with pytest.raises(StatusRefused, match="HTTP 401") as caught:
            await reader.run_page(0)
    assert given == [KEY, KEY]
    rule = judge(caught.value, SeenIn.CREATE)
    assert rule is not None
    assert rule.kind is Kind.UNAUTHORIZED


@pytest.mark.parametrize("revoke", [False, True])
async def test_a_token_outlives_its_key_and_is_renewed_by_the_next_one(*, revoke: bool) -> None:
    async with LocalTinker(long_poll_s=0.02, jwt=True) as server:
        async with _reading(server, server.api_key, NEW) as (reader, given):
            await reader.run_page(0)
            server.change_key(NEW, revoke=revoke)
            await reader.run_page(0)
        assert given[1:] == ([NEW] if revoke else [])


async def test_a_token_is_renewed_in_time_by_its_own_lifetime_and_serves_meanwhile() -> None:
    service, made = Service(), list[str]()

    def token(_: str) -> httpx.Response:
        # The service's clock is an hour ahead of ours: only the distance of the two claims counts.
        now = time.time() + 3600
        made.append(_jwt(iat=now, exp=now + 0.8 + len(made) * 600))
        return httpx.Response(200, json={"jwt": made[-1]})

    service.answers["token"] = token
    async with service.reader(KEY) as reader:
        await reader.run_page(0)
        await reader.run_page(0)
        assert len(made) == 1
        await anyio.sleep(0.5)
        await reader.run_page(0)
        with anyio.fail_after(5):
            while len(made) < 2:  # noqa: ASYNC110 - the transport of httpx cannot set an event
                await anyio.sleep(0.01)
        await anyio.sleep(0.4)
        await reader.run_page(0)
    assert service.asked("training_runs") == [made[0]] * 3 + [made[1]]


@pytest.mark.parametrize("route", ["config", "token"])
async def test_a_service_that_cannot_make_a_token_just_now_has_not_refused_the_key(
    route: str,
) -> None:
    service = Service()
    service.answers[route] = lambda _: httpx.Response(503)
    async with service.reader(KEY) as reader:
        with pytest.raises(StatusUnavailable, match=f"{route}.*HTTP 503"):
            await reader.run_page(0)
        del service.answers[route]
        await reader.run_page(0)
    assert KEY not in service.asked("training_runs")


async def test_a_token_that_cannot_be_renewed_serves_until_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service()
    now = time.time()
    live = _jwt(iat=now, exp=now + 10.0)
    service.answers["token"] = lambda _: httpx.Response(200, json={"jwt": live})
    async with service.reader(KEY) as reader:
        await reader.run_page(0)
        service.answers["token"] = lambda _: httpx.Response(503)
        for _ in range(3):
            await reader.run_page(0)
    assert set(service.asked("training_runs")) == {live}
    assert KEY not in caplog.text


async def test_headers_that_are_rotated_with_the_key_are_sent_as_well() -> None:
    service, gates = Service(pjwt_auth_enabled=False), list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        gates.append(request.headers["X-Gate"])
        if gates[-1] == "the old pass":
            return httpx.Response(401)
        return service.reply(request)

    def at(gate: str, key: str) -> Endpoint:
        renewed = (lambda: at("the new pass", NEW)) if key == KEY else None
        return Endpoint("http://127.0.0.1:1", SecretStr(key), {"X-Gate": gate}, renewed)

    async with StatusReader(
        at("the old pass", KEY), transport=httpx.MockTransport(answer)
    ) as reader:
        await reader.run_page(0)
    assert gates == ["the old pass", "the new pass", "the new pass"]


async def test_a_factory_that_raises_when_it_is_asked_again_leaves_the_refusal_as_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def renew() -> Endpoint:
        raise RuntimeError(f"no new key instead of {KEY}")

    service = Service(pjwt_auth_enabled=False)
    service.answers["training_runs"] = lambda _: httpx.Response(401)
    async with service.reader(KEY, renew=renew) as reader:
        with pytest.raises(StatusRefused, match="HTTP 401"):
            await reader.run_page(0)
    assert "service=" in caplog.text
    assert KEY not in caplog.text
