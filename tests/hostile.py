"""A server whose answers nobody should believe: raw HTTP, one connection for each request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Reply = tuple[dict[str, str], Iterable[bytes]]
"""Headers, and the body in pieces, which may never end."""


_CONFIG: Reply = ({}, [b"{}"])


@dataclass(slots=True)
class Hostile:
    """Where it listens, what it was asked, and how much it has sent.

    Attributes:
        base_url: Its address.
        asked: The paths, in order.
        sent: Bytes of bodies that were taken from it.
    """

    base_url: str = ""
    asked: list[str] = field(default_factory=list)
    sent: int = 0


@asynccontextmanager
async def hostile(answer: Callable[[str], Reply], *, status: int = 200) -> AsyncIterator[Hostile]:
    """A server that answers each path as ``answer`` says, except for the client's configuration."""
    server_is = Hostile()
    serving = set[asyncio.Task[object]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            code = status
            if path.endswith("/client/config"):
                code = 200
                headers, body = _CONFIG
            else:
                server_is.asked.append(path)
                headers, body = answer(path)
                code = int(headers.pop("Status", code))
            lines = [f"HTTP/1.1 {code} Any", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            for piece in body:
                writer.write(piece)
                await writer.drain()
                server_is.sent += len(piece)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        server_is.base_url = f"http://127.0.0.1:{port}"
        yield server_is
    # Connections that the client has closed end by themselves, a moment later.
    if serving:
        await asyncio.wait(serving, timeout=1.0)
    for _ in range(5):
        await asyncio.sleep(0)


@functools.cache
def packed(size: int, piece: bytes = b" " * 65536) -> bytes:
    """A body of this many bytes that is a thousand times shorter on the wire."""
    return gzip.compress(b"[" + piece * (size // len(piece)) + b"]")


def text(body: object) -> list[bytes]:
    """A JSON body."""
    return [json.dumps(body).encode()]
