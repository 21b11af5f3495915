"""The status reader, against the local server and against one that misbehaves."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import pytest_asyncio
from loops import MODEL, policy, train
from pydantic import SecretStr
from wire import wired

from tinker_recovery import StatusRefused, StatusUnavailable, Supervisor
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service import status as status_module
from tinker_recovery.testing import LocalTinker

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries")

RUN = {
    "training_run_id": "r",
    "base_model": "m",
    "model_owner": "o",
    "is_lora": True,
    "last_request_time": "2026-01-01T00:00:00Z",
}


@pytest_asyncio.fixture
async def reader(local: LocalTinker) -> AsyncIterator[StatusReader]:
    async with StatusReader(Endpoint(local.base_url, SecretStr(local.api_key))) as reader:
        yield reader


def _answering(answer: Callable[[httpx.Request], httpx.Response]) -> StatusReader:
    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/client/config"):
            return httpx.Response(200, json={})
        return answer(request)

    return StatusReader(
        Endpoint("http://127.0.0.1:1", SecretStr("tml-x")),
        timeout_s=5.0,
        transport=httpx.MockTransport(reply),
    )


async def test_a_run_and_its_checkpoints_are_read_as_the_sdk_would_read_them(
    local: LocalTinker, reader: StatusReader
) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8):
            async with attempt:
                await train(attempt, steps=5)
    run_id = supervisor.runs[0].segments[0].run_id
    status = await reader.run(run_id)
    assert (status.training_run_id, status.base_model, status.corrupted) == (run_id, MODEL, False)
    (checkpoint,) = await reader.checkpoints(run_id)
    assert checkpoint.user_metadata is not None
    assert checkpoint.user_metadata["tinker_recovery.step"] == "5"
    assert [run.training_run_id async for run in reader.runs()] == local.runs()


async def test_all_pages_are_read_and_an_empty_page_ends_it() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params["offset"])
        runs = [{**RUN, "training_run_id": str(n)} for n in range(250)][offset : offset + 100]
        cursor = {"offset": offset, "limit": 100, "total_count": 999}
        return httpx.Response(200, json={"training_runs": runs, "cursor": cursor})

    async with _answering(answer) as reader:
        found = [run.training_run_id async for run in reader.runs()]
    assert found == [str(n) for n in range(250)]


async def test_an_unknown_run_is_refused_and_has_no_checkpoints(reader: StatusReader) -> None:
    with pytest.raises(StatusRefused) as caught:
        await reader.run("unknown")
    assert caught.value.status_code == 404
    assert await reader.checkpoints("unknown") == []


@pytest.mark.parametrize("code", [408, 429, 500, 503])
async def test_a_transient_failure_is_retried(code: int) -> None:
    answers = iter([httpx.Response(code), httpx.Response(code), httpx.Response(200, json=RUN)])
    async with _answering(lambda _: next(answers)) as reader:
        assert (await reader.run("r")).training_run_id == "r"


async def test_retries_leave_no_line_that_names_neither_request_nor_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with _answering(lambda _: httpx.Response(503)) as reader:
        with caplog.at_level(logging.INFO), pytest.raises(StatusUnavailable):
            await reader.run("r")
    assert [each for each in caplog.records if each.name != "httpx"] == []


async def test_a_lasting_failure_names_what_was_read_and_the_answer() -> None:
    async with _answering(lambda _: httpx.Response(503)) as reader:
        with pytest.raises(StatusUnavailable, match=r"training_runs/r: HTTP 503"):
            await reader.run("r")


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(401),
        httpx.Response(403),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json=[1]),
        httpx.Response(200, json={"training_run_id": "r"}),
    ],
)
async def test_an_answer_that_a_retry_will_not_change_is_refused_at_once(
    response: httpx.Response,
) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return response

    async with _answering(answer) as reader:
        with pytest.raises(StatusRefused):
            await reader.run("r")
    assert len(asked) == 1


async def test_a_server_that_never_answers_takes_the_deadline_and_no_longer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        endpoint = Endpoint(f"http://127.0.0.1:{port}", SecretStr("tml-x"))
        async with StatusReader(endpoint, timeout_s=0.1) as reader:
            with pytest.raises(StatusUnavailable, match=r"longer than 0\.1 s"):
                await reader.run("r")


async def test_a_dead_server_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    endpoint = Endpoint(f"http://127.0.0.1:{port}", SecretStr("tml-x"))
    async with StatusReader(endpoint, timeout_s=5) as reader:
        with pytest.raises(StatusUnavailable):
            await reader.run("r")


async def test_without_a_key_the_error_says_where_to_put_one() -> None:
    async with StatusReader(Endpoint("http://127.0.0.1:1", None)) as reader:
        with pytest.raises(StatusRefused, match="TINKER_API_KEY"):
            await reader.run("r")


async def test_a_password_in_the_base_url_is_sent_as_a_header_with_every_request() -> None:
    seen: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        seen.append((name, request.headers["Authorization"]))
        assert request.headers["X-Gate"] == "open"
        assert "@" not in str(request.url)
        if name == "config":
            return httpx.Response(200, json={"pjwt_auth_enabled": True})
        return httpx.Response(200, json={"jwt": "a token"} if name == "token" else RUN)

    endpoint = Endpoint("http://me:p%40ss-w0rd@127.0.0.1:1", SecretStr("tml-x"), {"X-Gate": "open"})
    async with StatusReader(endpoint, transport=httpx.MockTransport(answer)) as reader:
        await reader.run("r")
    # "me:p@ss-w0rd", as HTTP has it
    assert seen == [(name, "Basic bWU6cEBzcy13MHJk") for name in ("config", "token", "r")]


async def test_a_token_that_is_refused_is_renewed_once() -> None:
    tokens = iter(["first", "second"])
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/client/config"):
            return httpx.Response(200, json={"pjwt_auth_enabled": True})
        if request.url.path.endswith("/auth/token"):
            return httpx.Response(200, json={"jwt": next(tokens)})
        seen.append(request.headers["X-API-Key"])
        return httpx.Response(401 if seen[-1] == "first" else 200, json=RUN)

    async with StatusReader(
        Endpoint("http://127.0.0.1:1", SecretStr("tml-x")), transport=httpx.MockTransport(answer)
    ) as reader:
        await reader.run("r")
        await reader.run("r")
    assert seen == ["first", "second", "second"]


async def test_one_odd_entry_is_passed_over_with_its_reason_and_costs_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with LocalTinker() as local, wired(local) as wire:
        run = await wire.create()
        for seq_id, name in enumerate("abcd", 1):
            await wire.result(await wire.save(run, seq_id, name))
        paths = [stored.path for stored in local.checkpoints(run)]
        local.list_as(paths[0], checkpoint_type="delta")
        local.list_as(paths[1], time=None)
        local.list_as(paths[3], checkpoint_type="delta")
        endpoint = Endpoint(local.base_url, SecretStr(local.api_key))
        async with StatusReader(endpoint) as reader:
            for _ in range(2):
                assert [one.tinker_path for one in await reader.checkpoints(run)] == [paths[2]]
            everything = [one.tinker_path async for one in reader.every_checkpoint()]
            assert everything == [paths[2]]
            assert (await reader.run(run)).training_run_id == run, "its last_checkpoint is odd"
            assert [one.training_run_id async for one in reader.runs()] == [run]
    said = [record.getMessage() for record in caplog.records if "passed over" in record.message]
    assert len(said) == 3, "each once"
    assert any(paths[0] in message and "checkpoint_type" in message for message in said)
    assert any(paths[1] in message and "time" in message for message in said)


async def test_a_list_that_counts_what_is_left_of_it_comes_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status_module, "PAGE", 2)
    asked = []

    def page(request: httpx.Request) -> httpx.Response:
        asked.append(offset := int(request.url.params["offset"]))
        runs = [{**RUN, "training_run_id": f"r{number}"} for number in range(9)]
        cursor = {"offset": offset, "limit": 2, "total_count": 9 - offset}
        reply = {"training_runs": runs[offset : offset + 2], "cursor": cursor}
        return httpx.Response(200, json=reply)

    async with _answering(page) as reader:
        found = [each.training_run_id async for each in reader.runs()]
    assert found[:4] == ["r0", "r1", "r2", "r3"]
    assert len(asked) < 8


@pytest.mark.parametrize(
    ("deleted", "added"), [([0], 0), ([0, 1], 0), ([0, 5], 0), ([5], 0), ([0, 1], 1), ([0], 1)]
)
async def test_what_is_deleted_while_a_list_is_read_hides_nothing_else_of_it(
    monkeypatch: pytest.MonkeyPatch, deleted: list[int], added: int
) -> None:
    """The list has the newest first: what was behind the page that was read has moved up."""
    monkeypatch.setattr(status_module, "PAGE", 2)

    def entry(name: str) -> dict[str, object]:
        return {
            "checkpoint_id": f"weights/{name}",
            "checkpoint_type": "training",
            "time": "2026-01-01T00:00:00Z",
            "tinker_path": f"tinker://r/weights/{name}",
        }

    there = [entry(str(number)) for number in range(6)]
    gone = [there[number] for number in deleted]

    def page(request: httpx.Request) -> httpx.Response:
        offset, limit = (int(request.url.params[name]) for name in ("offset", "limit"))
        cursor = {"offset": offset, "limit": limit, "total_count": len(there)}
        reply = {"checkpoints": there[offset : offset + limit], "cursor": cursor}
        there[:] = [entry(f"new-{number}") for number in range(added if offset == 0 else 0)] + [
            each for each in there if each not in gone
        ]
        return httpx.Response(200, json=reply)

    async with _answering(page) as reader:
        found = [each.tinker_path async for each in reader.every_checkpoint()]
    assert len(found) == len(set(found))
    assert {each["tinker_path"] for each in there if "new" not in str(each)} <= set(found)
