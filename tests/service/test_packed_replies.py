"""What a service sends packed leaves the connection as usable as what it sends plain."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from pydantic import SecretStr

from tinker_recovery.service import Endpoint
from tinker_recovery.service.bounded import REST_S
from tinker_recovery.service.http import ServiceHttp

BODY = {"values": list(range(50))}
PACKED = gzip.compress(json.dumps(BODY).encode())

Piece = bytes | float
"""What is sent, or for how many seconds nothing is."""


def _with_length() -> list[Piece]:
    return [b"Content-Length: %d\r\n\r\n" % len(PACKED), PACKED]


def _in_chunks() -> list[Piece]:
    return [b"Transfer-Encoding: chunked\r\n\r\n", _chunk(PACKED) + b"0\r\n\r\n"]


def _ended_later() -> list[Piece]:
    return [b"Transfer-Encoding: chunked\r\n\r\n", _chunk(PACKED), 0.05, b"0\r\n\r\n"]


def _never_ended() -> list[Piece]:
    return [b"Transfer-Encoding: chunked\r\n\r\n", _chunk(PACKED), 60.0]


def _followed_by_more() -> list[Piece]:
    return [b"Transfer-Encoding: chunked\r\n\r\n", _chunk(PACKED), *[_chunk(b" " * 65536)] * 1000]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@asynccontextmanager
async def _serving(reply: Callable[[], list[Piece]]) -> AsyncIterator[tuple[str, list[object]]]:
    """A server that keeps its connections, packs what it answers, and lists who has connected."""
    connections: list[object] = []
    serving = set[asyncio.Task[object]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        connections.append(writer.get_extra_info("peername"))
        with contextlib.suppress(
            ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
        ):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = head.partition("content-length: ")[2].partition("\r")[0]
                await reader.readexactly(int(length or 0))
                if "/client/config" in head:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n")
                for piece in reply():
                    if isinstance(piece, float):
                        await asyncio.sleep(piece)
                    else:
                        writer.write(piece)
                        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", connections
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
    for _ in range(20):  # what httpx has left of a reply ends by itself, a moment later
        await asyncio.sleep(0)


def _client(base_url: str) -> ServiceHttp:
    return ServiceHttp(Endpoint(base_url, SecretStr("tml-x")), timeout_s=30.0)


@pytest.mark.parametrize("reply", [_with_length, _in_chunks, _ended_later])
async def test_a_packed_reply_leaves_its_connection_open_and_is_no_sign_of_a_restart(
    reply: Callable[[], list[Piece]],
) -> None:
    async with _serving(reply) as (base_url, connections):
        http = _client(base_url)
        cuts: list[float] = []
        http.cut = lambda: cuts.append(time.monotonic())
        for _ in range(3):
            assert await http.ask("GET", "training_runs", dict) == BODY
        assert not http.take_cut()
        await http.aclose()
    assert cuts == []
    assert len(connections) == 1


@pytest.mark.parametrize("reply", [_never_ended, _followed_by_more])
async def test_a_packed_reply_that_does_not_end_is_read_and_not_waited_for(
    reply: Callable[[], list[Piece]],
) -> None:
    async with _serving(reply) as (base_url, _):
        http = _client(base_url)
        with anyio.fail_after(REST_S + 5.0):
            assert await http.ask("GET", "training_runs", dict) == BODY
        await http.aclose()
