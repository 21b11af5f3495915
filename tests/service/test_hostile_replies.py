"""What a service answers is not believed: each reply, listing and download has its limits."""

from __future__ import annotations

import gzip
import itertools
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from hostile import Reply, hostile, packed, text
from pydantic import SecretStr

from tinker_recovery import RecoveryPolicy, StatusError, StatusRefused
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service.bounded import ReplyLimits
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.claim_sessions import ClaimSessions
from tinker_recovery.service.download import Download
from tinker_recovery.service.export import Limits

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries")

MB = 1 << 20
SMALL = ReplyLimits(reply_bytes=MB, listed=1000, listing_s=2.0, export_bytes=4 * MB)
RUN = {
    "training_run_id": "r",
    "base_model": "m",
    "model_owner": "o",
    "is_lora": True,
    "last_request_time": "2026-01-01T00:00:00Z",
}


def _reader(base_url: str, limits: ReplyLimits = SMALL, timeout_s: float = 5.0) -> StatusReader:
    return StatusReader(Endpoint(base_url, SecretStr("tml-x")), timeout_s=timeout_s, limits=limits)


GZIP = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    "reply",
    [
        lambda: (GZIP, [packed(200 * MB)]),
        lambda: ({}, itertools.repeat(b" " * 65536)),
        lambda: (GZIP, itertools.repeat(gzip.compress(b"") * 3000)),
        lambda: ({"Content-Length": str(1 << 40)}, [b"{"]),
        lambda: ({}, [b"[" + b"[]," * 300_000 + b"[]]"]),
        lambda: ({}, [b"[" * 500_000]),
        lambda: ({"Content-Encoding": "br"}, [b"{}"]),
        lambda: ({"Content-Encoding": "gzip, gzip"}, [gzip.compress(gzip.compress(b"{}"))]),
    ],
    ids=["bomb", "endless", "empty-members", "announced", "many", "deep", "brotli", "twice"],
)
@pytest.mark.parametrize("status", [200, 401, 500])
async def test_no_reply_takes_more_memory_or_time_than_its_limits(
    reply: Callable[[], Reply], status: int
) -> None:
    reply()  # what it takes to make one is not counted
    answering = hostile(lambda _: reply(), status=status)
    async with answering as server, _reader(server.base_url) as reader:
        tracemalloc.start()
        began = time.monotonic()
        with pytest.raises(StatusError):
            await reader.run("r")
        with anyio.fail_after(10):
            await CheckpointCalls(reader.http).delete("tinker://r/weights/n")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 24 * MB
        assert time.monotonic() - began < 8.0
        assert server.sent < 40 * MB


async def test_a_reply_that_is_too_large_is_refused_with_the_setting_and_read_only_once() -> None:
    async with hostile(lambda _: (GZIP.copy(), [packed(8 * MB)])) as server:
        async with _reader(server.base_url) as reader:
            with pytest.raises(StatusRefused, match=r"more than 1048576 bytes.*max_reply_bytes"):
                await reader.run("r")
        assert len(server.asked) == 1


async def test_a_reply_that_is_packed_and_within_its_limit_is_read() -> None:
    packed_run = gzip.compress(text(RUN)[0])
    answering = hostile(lambda _: (GZIP.copy(), [packed_run]))
    async with answering as server, _reader(server.base_url) as reader:
        assert (await reader.run("r")).training_run_id == "r"


async def test_a_listing_whose_total_keeps_growing_ends() -> None:
    asked = itertools.count(1)

    def page(_: str) -> Reply:
        total = 100 * (next(asked) + 1)
        return {}, text({"training_runs": [RUN] * 100, "cursor": _cursor(total)})

    wide = ReplyLimits(listed=1_000_000)
    async with hostile(page) as server, _reader(server.base_url, wide) as reader:
        with pytest.raises(StatusRefused, match="keeps growing"):
            [each async for each in reader.runs()]
        assert len(server.asked) < 30


async def test_a_listing_of_more_than_is_allowed_ends_with_the_setting() -> None:
    def page(_: str) -> Reply:
        return {}, text({"training_runs": [RUN] * 100, "cursor": _cursor(10**9)})

    async with hostile(page) as server, _reader(server.base_url) as reader:
        with pytest.raises(StatusRefused, match=r"more than 1000 entries.*max_listed"):
            [each async for each in reader.runs()]
        assert len(server.asked) <= 11


async def test_a_listing_that_takes_too_long_ends_with_the_setting() -> None:
    def page(_: str) -> Reply:
        time.sleep(0.2)
        return {}, text({"training_runs": [RUN], "cursor": _cursor(10**9)})

    async with hostile(page) as server, _reader(server.base_url) as reader:
        with pytest.raises(StatusError, match=r"2 s.*listing_timeout_s"):
            [each async for each in reader.runs()]


async def test_a_search_that_never_comes_to_its_last_page_ends() -> None:
    asked = itertools.count(1)

    def page(_: str) -> Reply:
        cursor = {"created_at": "2026-01-01T00:00:00Z", "session_id": f"s{next(asked)}"}
        return {}, text({"sessions": [], "next_cursor": cursor})

    async with hostile(page) as server, _reader(server.base_url) as reader:
        with pytest.raises(StatusError):
            await ClaimSessions(reader.http).every_claim("n")
        assert len(server.asked) < 1002


def _cursor(total: int) -> dict[str, int]:
    return {"offset": 0, "limit": 100, "total_count": total}


def _download(reader: StatusReader, folder: Path, *, listed: int | None = None) -> Download:
    return Download(
        "tinker://r/external_weights/e",
        folder,
        calls=CheckpointCalls(reader.http),
        limits=Limits(download_s=20.0),
        now=lambda: datetime.now(UTC),
        received=lambda _: None,
        listed_bytes=listed,
    )


def _with_file(
    reply: Callable[[str], Reply], base: list[str], url: str = ""
) -> Callable[[str], Reply]:
    def answer(path: str) -> Reply:
        if "/api/" not in path:
            return reply(path)
        expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        return {}, text({"urls": {"w.safetensors": url or base[0] + "/file"}, "expires": expires})

    return answer


@pytest.mark.parametrize(
    ("reply", "listed", "said"),
    [
        (lambda _: ({}, itertools.repeat(b"x" * 65536)), None, "more than 4194304 bytes"),
        (lambda _: ({}, itertools.repeat(b"x" * 65536)), 1000, "more than the 1000 bytes"),
        (lambda _: ({"Content-Length": str(1 << 40)}, [b"x"]), None, "more than 4194304 bytes"),
        (lambda _: (GZIP.copy(), [packed(64 * MB)]), None, "gzip, although identity was asked for"),
        (lambda _: ({"Status": "302", "Location": "http://localhost:1/x"}, []), None, "redirect"),
        (lambda _: ({"Status": "302", "Location": "file:///etc/passwd"}, []), None, "redirect"),
        (lambda _: ({"Status": "302", "Location": "/file"}, []), None, "TooManyRedirects"),
    ],
    ids=["endless", "longer-than-listed", "announced", "packed", "host", "scheme", "for-ever"],
)
async def test_a_download_ends_at_its_limit_and_leads_nowhere_else(
    reply: Callable[[str], Reply], listed: int | None, said: str, tmp_path: Path
) -> None:
    base: list[str] = []
    async with hostile(_with_file(reply, base)) as server, _reader(server.base_url) as reader:
        base.append(server.base_url)
        with anyio.fail_after(15), pytest.raises(StatusError, match=said):
            await _download(reader, tmp_path, listed=listed).files()
        file = anyio.Path(tmp_path / "w.safetensors")
        assert not await file.exists() or (await file.stat()).st_size <= 20 * MB
        assert server.sent < 24 * MB


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "nonsense"])
async def test_a_signed_url_of_another_scheme_is_refused(url: str, tmp_path: Path) -> None:
    answer = _with_file(lambda _: ({}, []), [], url)
    async with hostile(answer) as server, _reader(server.base_url) as reader:
        with pytest.raises(StatusRefused, match="neither http nor https") as caught:
            await _download(reader, tmp_path).files()
        assert url not in str(caught.value)


async def test_a_redirect_within_the_host_is_followed(tmp_path: Path) -> None:
    base: list[str] = []

    def reply(path: str) -> Reply:
        moved = {"Status": "302", "Location": "/moved"}
        return ({}, [b"whole"]) if path == "/moved" else (moved, [])

    async with hostile(_with_file(reply, base)) as server, _reader(server.base_url) as reader:
        base.append(server.base_url)
        files = await _download(reader, tmp_path, listed=5).files()
    assert files["w.safetensors"].read_bytes() == b"whole"


def test_the_limits_are_settings() -> None:
    policy = RecoveryPolicy(
        max_reply_bytes=MB, max_listed=7, listing_timeout_s=3.0, max_export_bytes=9 * MB
    )
    assert ReplyLimits.of(policy) == ReplyLimits(MB, 7, 3.0, 9 * MB)
    assert ReplyLimits.of(RecoveryPolicy()) == ReplyLimits()
