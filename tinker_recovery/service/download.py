"""The files of an export, downloaded one by one from their signed addresses.

An address is a secret: with it anybody can read the weights. So none is put into an error, a log
or a span: what httpx would write of a request is kept out of the log while one is under way, and
whoever traces every HTTP request of the process is asked to pass over these.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import httpx
import stamina
from opentelemetry import context

from tinker_recovery.clock import Clock
from tinker_recovery.errors import StatusRefused, StatusUnavailable
from tinker_recovery.service.checkpoint_calls import CheckpointCalls, SignedFiles
from tinker_recovery.service.export import Limits
from tinker_recovery.service.http import tls
from tinker_recovery.service.temporary import TTL_S

CHUNK = 1 << 20
"""Bytes written at a time."""

RENEW_BEFORE = timedelta(minutes=5)
"""An address this close to its end is signed again before a download begins."""

TRIES = 3

Received = Callable[[int], object]
"""Told how many bytes have arrived in all."""

_LATER = frozenset({408, 425, 429})
_NOT_SIGNED = frozenset({400, 401, 403})
"""What object stores say of an address that has expired."""

_UNTRACED = str(
    # As the instrumentations read it; the API has no public name for it.
    getattr(context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "suppress_http_instrumentation")
)
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy")
_secret: ContextVar[bool] = ContextVar("_secret", default=False)


def _may_be_logged(_: logging.LogRecord) -> bool:
    return not _secret.get()


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the requests of this task out of logs and traces; those of others stay in them."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(
            _may_be_logged
        )  # once: the same filter is not added twice
    token = _secret.set(True)
    traced = context.attach(context.set_value(_UNTRACED, True))  # noqa: FBT003 - the value of a key
    try:
        yield
    finally:
        context.detach(traced)
        _secret.reset(token)


class Download:
    """The download of one export. Cancellable at any point; whoever gave the folder removes it.

    Args:
        path: The export's ``tinker://RUN/external_weights/NAME`` path.
        folder: Where the files go.
        calls: Where addresses are asked for.
        limits: How long it may take.
        clock: The date.
        received: Told of progress.
    """

    def __init__(
        self,
        path: str,
        folder: Path,
        *,
        calls: CheckpointCalls,
        limits: Limits,
        clock: Clock,
        received: Received,
    ) -> None:
        self._path = path
        self._folder = folder
        self._calls = calls
        self._limits = limits
        self._clock = clock
        self._received = received
        self._done = 0

    async def files(self) -> dict[str, Path]:
        """Download every file; each by its name in the export.

        Raises:
            StatusUnavailable: The service, or what holds its files, was out of reach or too slow.
            StatusRefused: It refuses, or names no file, or one that lies outside the folder.
            OSError: A file cannot be written.
        """
        try:
            with _unlogged(), anyio.fail_after(self._limits.download_s):
                return await self._files()
        except TimeoutError as error:
            raise StatusUnavailable(
                f"downloading {self._path} took longer than {self._limits.download_s:g} s"
            ) from error

    async def _files(self) -> dict[str, Path]:
        signed = await self._calls.signed_files(self._path)
        places = {name: _inside(self._folder, name) for name in sorted(signed.urls)}
        if not places:
            raise StatusRefused(f"the service names no file of {self._path}")
        # No header of the service's own: the files lie elsewhere, and the key is none of its
        # business.
        async with httpx.AsyncClient(
            timeout=self._limits.silence_s, verify=tls(), follow_redirects=True
        ) as http:
            for name, place in places.items():
                signed = await self._fetch(http, name, place, signed)
        return places

    async def _fetch(
        self, http: httpx.AsyncClient, name: str, place: Path, signed: SignedFiles
    ) -> SignedFiles:
        before = self._done
        place.parent.mkdir(parents=True, exist_ok=True)
        async for attempt in stamina.retry_context(
            on=StatusUnavailable, attempts=TRIES, timeout=None, wait_initial=0.5, wait_max=5.0
        ):
            with attempt:
                self._done = before
                signed = await self._fresh(signed, even_so=attempt.num > 1)
                if name not in signed.urls:
                    raise StatusRefused(f"{self._path} has no file {name!r} any more")
                await self._stream(http, name, signed.urls[name].get_secret_value(), place)
        return signed

    async def _fresh(self, signed: SignedFiles, *, even_so: bool) -> SignedFiles:
        """Addresses that last a while, and an export that outlives them."""
        now = datetime.fromtimestamp(self._clock.wall(), UTC)
        if not even_so and now < signed.expires - RENEW_BEFORE:
            return signed
        await self._calls.set_ttl(self._path, TTL_S)
        return await self._calls.signed_files(self._path)

    async def _stream(self, http: httpx.AsyncClient, name: str, url: str, place: Path) -> None:
        failure = ""
        try:
            async with http.stream("GET", url, headers={"Accept-Encoding": "identity"}) as reply:
                self._check(reply.status_code, name)
                async with await anyio.open_file(place, "wb") as file:
                    async for chunk in reply.aiter_bytes(CHUNK):
                        await file.write(chunk)
                        self._done += len(chunk)
                        self._received(self._done)
                promised = reply.headers.get("Content-Length")
                if promised is not None and int(promised) != reply.num_bytes_downloaded:
                    failure = f"{reply.num_bytes_downloaded} bytes came, and {promised} were said"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failure = type(error).__name__
        if failure:
            # Not from within the handler: httpx's errors carry the request, and it the address.
            raise StatusUnavailable(f"downloading {name!r} of {self._path}: {failure}")

    def _check(self, code: int, name: str) -> None:
        said = f"downloading {name!r} of {self._path}: HTTP {code}"
        if code in _LATER or code in _NOT_SIGNED or code >= httpx.codes.INTERNAL_SERVER_ERROR:
            # An address may have expired meanwhile: the next try asks for another.
            raise StatusUnavailable(said, status_code=code)
        if code != httpx.codes.OK:
            raise StatusRefused(said, status_code=code)


def _inside(folder: Path, name: str) -> Path:
    """Where a file of this name goes.

    Raises:
        StatusRefused: Outside the folder.
    """
    root = folder.resolve()
    place = (root / name).resolve()
    if place == root or not place.is_relative_to(root):
        raise StatusRefused(f"the service names a file {name!r}, which lies outside its folder")
    return place
