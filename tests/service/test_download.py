"""A download streams in a thread of its own, and is cancelled at any point as if it did not."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from certificates import self_signed
from hostile import Reply, hostile, text
from pydantic import SecretStr

from tinker_recovery.service import Endpoint, StatusReader, download
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.download import Download
from tinker_recovery.service.export import Limits

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries")

MB = 1 << 20


def _signed(url: str) -> Callable[[str], Reply]:
    """A service whose export has one file, which is at this address."""
    expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    return lambda _: ({}, text({"urls": {"w.safetensors": url}, "expires": expires}))


def _download(reader: StatusReader, folder: Path, received: list[int]) -> Download:
    return Download(
        "tinker://r/external_weights/e",
        folder,
        calls=CheckpointCalls(reader.http),
        limits=Limits(),
        now=lambda: datetime.now(UTC),
        received=received.append,
        listed_bytes=64 * MB,
    )


class Silent:
    """A store that sends a megabyte of eight, and then nothing; ``accepts`` connections or not."""

    def __init__(self, *, accepts: bool, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.socket.getsockname()[1]}/file"
        self._taken: list[socket.socket] = []
        if accepts:
            threading.Thread(target=self._serve, daemon=True).start()
        else:
            # What is not accepted fills the queue, and further ones connect for ever.
            for _ in range(2):
                connection = socket.socket()
                connection.setblocking(False)  # noqa: FBT003 - the signature of a socket
                connection.connect_ex(self.socket.getsockname())
                self._taken.append(connection)

    def _serve(self) -> None:
        connection, _ = self.socket.accept()
        if self._tls:
            connection = self._tls.wrap_socket(connection, server_side=True)
        self._taken.append(connection)
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n" + b"x" * MB)

    def close(self) -> None:
        for each in (*self._taken, self.socket):
            each.close()


def _certificate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate that downloads trust."""
    certificate, context = self_signed(folder)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(download, "tls", lambda: trusting)
    return context


@pytest.fixture(params=["in-the-body", "in-the-body-of-tls", "connecting"])
def silent(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Silent]:
    tls = None
    if request.param == "in-the-body-of-tls":
        tls = _certificate(tmp_path_factory.mktemp("tls"), monkeypatch)
    store = Silent(accepts=request.param != "connecting", tls=tls)
    yield store
    store.close()


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_a_download_that_hangs_is_cancelled_at_once_and_keeps_what_arrived(
    tmp_path: Path, silent: Silent, how: str, request: pytest.FixtureRequest
) -> None:
    connecting = "connecting" in request.node.callspec.id
    place = anyio.Path(tmp_path / "w.safetensors")
    received: list[int] = []
    async with hostile(_signed(silent.url)) as server:
        endpoint = Endpoint(server.base_url, SecretStr("tml-x"))
        async with StatusReader(endpoint, timeout_s=5.0) as reader:
            scope = anyio.CancelScope()

            async def fetch() -> None:
                with scope:
                    await _download(reader, tmp_path, received).files()

            task = asyncio.create_task(fetch())
            if connecting:
                await anyio.sleep(0.3)
            else:
                while not await place.exists() or (await place.stat()).st_size < MB:  # noqa: ASYNC110 - a thread's doing
                    await anyio.sleep(0.01)
            began = time.monotonic()
            if how == "scope":
                scope.cancel()
                await task
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert time.monotonic() - began < 1.0
            if connecting:
                assert not await place.exists()
            else:
                assert (await place.stat()).st_size == MB
                assert max(received, default=0) <= MB


class SilentInTheSecond(Silent):
    """A store that sends a whole file, and over the same connection a part of the next."""

    def _serve(self) -> None:
        connection, _ = self.socket.accept()
        self._taken.append(connection)
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n" + b"x" * MB)


async def test_a_file_over_the_connection_of_another_is_cancelled_at_once_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SilentInTheSecond(accepts=True)
    expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    urls = {"adapter_config.json": store.url, "adapter_model.safetensors": store.url}
    ended: list[int] = []
    stream = Download._stream

    def watched(*given: Any) -> None:
        try:
            stream(*given)
        finally:
            ended.append(1)

    monkeypatch.setattr(Download, "_stream", watched)
    place = anyio.Path(tmp_path / "adapter_model.safetensors")
    async with hostile(lambda _: ({}, text({"urls": urls, "expires": expires}))) as server:
        endpoint = Endpoint(server.base_url, SecretStr("tml-x"))
        async with StatusReader(endpoint, timeout_s=5.0) as reader:
            task = asyncio.create_task(_download(reader, tmp_path, []).files())
            while not await place.exists() or (await place.stat()).st_size < MB:  # noqa: ASYNC110 - a thread's doing
                await anyio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            both = len(ended)
    store.close()
    assert both == len(urls)


async def test_downloads_take_no_thread_that_others_wait_for(tmp_path: Path) -> None:
    store = Silent(accepts=True)
    async with hostile(_signed(store.url)) as server:
        endpoint = Endpoint(server.base_url, SecretStr("tml-x"))
        reader = StatusReader(endpoint, timeout_s=5.0)
        async with reader, anyio.create_task_group() as group:
            group.start_soon(_download(reader, tmp_path, []).files)
            place = anyio.Path(tmp_path / "w.safetensors")
            while not await place.exists():  # noqa: ASYNC110 - a thread's doing
                await anyio.sleep(0.01)
            assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            group.cancel_scope.cancel()
    store.close()
