"""Downloads the files of an export, one by one, from their signed URLs.

A signed URL is a secret: it grants access to the weights. None appears in an error, a log or a
span: log records of httpx are dropped for these requests, and OpenTelemetry's HTTP instrumentation
is suppressed.
"""

from __future__ import annotations

import asyncio
import io
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from pathlib import Path

import anyio
import httpx
from opentelemetry import context

from tinker_recovery.errors import StatusRefused, StatusUnavailable
from tinker_recovery.service.bounded import bound
from tinker_recovery.service.checkpoint_calls import CheckpointCalls, SignedFiles
from tinker_recovery.service.export import Limits
from tinker_recovery.service.http import tls
from tinker_recovery.service.interruptible import Interruption, interruptible
from tinker_recovery.service.retrying import retried
from tinker_recovery.service.temporary import TTL_S

TELL_S = 0.1
"""How often progress is reported."""

CONNECT_S = 15.0
"""Seconds for a connection to an object store."""

MARGIN = 1 << 24
"""Bytes beyond a tenth that an export may have more than its listing says."""

MOST_FILES = 10_000

RENEW_BEFORE = timedelta(minutes=5)
"""A URL this close to its expiry is renewed before a download begins."""

TRIES = 3

Received = Callable[[int], object]
"""Called with the total number of bytes received so far."""

_LATER = frozenset({408, 425, 429})
_NOT_SIGNED = frozenset({400, 401, 403})
"""What object stores answer for an expired URL."""

_UNTRACED = str(
    # The key the instrumentations read; the API has no public name for it.
    getattr(context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "suppress_http_instrumentation")
)
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy")
_secret: ContextVar[bool] = ContextVar("_secret", default=False)


def _may_be_logged(_: logging.LogRecord) -> bool:
    return not _secret.get()


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the requests of this task, and only these, out of logs and traces."""
    for name in _LOGGERS:
        # The same filter is not added twice.
        logging.getLogger(name).addFilter(_may_be_logged)
    token = _secret.set(True)
    traced = context.attach(context.set_value(_UNTRACED, True))  # noqa: FBT003 - the value of a key
    try:
        yield
    finally:
        context.detach(traced)
        _secret.reset(token)


class Download:
    """The download of one export. Cancellable at any point; the caller removes the folder.

    Args:
        path: The export's ``tinker://RUN/external_weights/NAME`` path.
        folder: Where to write the files.
        calls: Gives the signed URLs.
        limits: How long it may take.
        now: The service's date, for the expiry of URLs.
        received: Called with the progress.
        listed_bytes: How large the service says the export is; None or 0 if it does not.
        resume: Whether what the folder holds of a file is the beginning of it, from an earlier
            download of this export, and only the rest is asked for.
    """

    def __init__(
        self,
        path: str,
        folder: Path,
        *,
        calls: CheckpointCalls,
        limits: Limits,
        now: Callable[[], datetime],
        received: Received,
        listed_bytes: int | None,
        resume: bool = False,
    ) -> None:
        self._path = path
        self._folder = folder
        self._calls = calls
        self._limits = limits
        self._now = now
        self._received = received
        self._tell: Callable[[], object] = lambda: None
        self._resume = resume
        self._done = 0
        self._threads = anyio.CapacityLimiter(1)
        self._connection: socket.socket | None = None
        self._at: tuple[str, str, int | None] = ("", "", None)
        if listed_bytes:
            self._most = listed_bytes + listed_bytes // 10 + MARGIN
            self._allowed = f"the {listed_bytes} bytes that the service lists"
        else:
            self._most = calls.limits.export_bytes
            self._allowed = f"{self._most} bytes: raise max_export_bytes if that is right"

    async def files(self) -> dict[str, Path]:
        """Download every file; returns the local path of each by its name in the export.

        Raises:
            StatusUnavailable: The service, or its object store, was out of reach or too slow.
            StatusRefused: It refuses, or lists no file, or one outside the folder.
            OSError: A file cannot be written.
        """
        loop = asyncio.get_running_loop()
        self._tell = lambda: loop.call_soon_threadsafe(self._received, self._done)
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
        if not 0 < len(places) <= MOST_FILES:
            raise StatusRefused(
                f"the service lists {len(places)} files of {self._path}: 1 to {MOST_FILES} are "
                "allowed"
            )
        # Without the service's headers: the object store must not get the API key.
        with httpx.Client(
            timeout=httpx.Timeout(
                self._limits.silence_s, connect=min(self._limits.silence_s, CONNECT_S)
            ),
            verify=tls(),
            follow_redirects=True,
            event_hooks={"request": [self._stay], "response": [self._bound]},
        ) as http:
            for name, place in places.items():
                signed = await self._fetch(http, name, place, signed)
                self._received(self._done)
        return places

    async def _fetch(
        self, http: httpx.Client, name: str, place: Path, signed: SignedFiles
    ) -> SignedFiles:
        before = self._done
        place.parent.mkdir(parents=True, exist_ok=True)

        async def once(number: int) -> SignedFiles:
            nonlocal signed
            self._done = before
            signed = await self._renewed(signed, force=number > 1)
            if name not in signed.urls:
                raise StatusRefused(f"{self._path} no longer has a file {name!r}")
            url = signed.urls[name].get_secret_value()
            await interruptible(
                lambda interruption: self._stream(http, name, url, place, interruption),
                limiter=self._threads,
                connection=self._connection,
            )
            return signed

        return await retried(once, tries=TRIES, first_s=0.5, most_s=5.0)

    async def _renewed(self, signed: SignedFiles, *, force: bool) -> SignedFiles:
        """The URLs, renewed if they expire soon, or by force; the export's lifetime with them."""
        if not force and self._now() < signed.expires - RENEW_BEFORE:
            return signed
        await self._calls.set_ttl(self._path, TTL_S)
        return await self._calls.signed_files(self._path)

    def _stay(self, request: httpx.Request) -> None:
        """Before each request, those that redirects lead to included."""
        place = (request.url.scheme, request.url.host, request.url.port)
        if place != self._at:
            raise StatusRefused(
                f"downloading {self._path}: a redirect to another host or scheme is not followed"
            )

    def _bound(self, reply: httpx.Response) -> None:
        bound(reply, self._most - self._done, allowed=self._allowed, unpack=False)

    def _stream(
        self, http: httpx.Client, name: str, url: str, place: Path, interruption: Interruption
    ) -> None:
        """Download one file, or the rest of it; in a thread."""
        failure = ""
        try:
            at = httpx.URL(url)
        except httpx.InvalidURL:
            at = httpx.URL()
        self._at = (at.scheme, at.host, at.port)
        if at.scheme not in ("http", "https") or not at.host:
            raise StatusRefused(
                f"downloading {name!r} of {self._path}: its address is neither http nor https"
            )
        have = _size_of(place) if self._resume else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            with http.stream(
                "GET", url, headers=headers, extensions={"trace": interruption.trace}
            ) as reply:
                if have and self._is_whole(reply, have):
                    self._done += have
                    return
                goes_on = bool(have) and self._goes_on(reply, have)
                if not goes_on:
                    self._check(reply.status_code, name)
                self._done += have if goes_on else 0
                interruption.check()
                # Unbuffered: what arrived before a connection broke is there to go on from.
                with place.open("ab" if goes_on else "wb", buffering=0) as file:
                    self._write_all(reply, file, interruption)
                promised = reply.headers.get("Content-Length")
                if promised is not None and int(promised) != reply.num_bytes_downloaded:
                    failure = f"{reply.num_bytes_downloaded} bytes arrived instead of {promised}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failure = type(error).__name__
        finally:
            self._connection = interruption.connection
        if failure:
            # Outside the handler: httpx's errors carry the request, with its URL.
            raise StatusUnavailable(f"downloading {name!r} of {self._path}: {failure}")

    def _write_all(
        self, reply: httpx.Response, file: io.FileIO, interruption: Interruption
    ) -> None:
        due = 0.0
        for piece in reply.iter_raw():  # `bound` has seen to it that it is not packed
            interruption.check()
            written = 0
            while written < len(piece):
                written += file.write(memoryview(piece)[written:])
            self._done += written
            if (now := time.monotonic()) >= due:
                self._tell()
                due = now + TELL_S

    @staticmethod
    def _is_whole(reply: httpx.Response, have: int) -> bool:
        """Whether the answer to a request for the rest is that there is none."""
        return (
            reply.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE
            and reply.headers.get("Content-Range") == f"bytes */{have}"
        )

    @staticmethod
    def _goes_on(reply: httpx.Response, have: int) -> bool:
        """Whether the answer is the rest; a store that knows no ranges sends the whole."""
        return reply.status_code == httpx.codes.PARTIAL_CONTENT and reply.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {have}-")

    def _check(self, code: int, name: str) -> None:
        message = f"downloading {name!r} of {self._path}: HTTP {code}"
        if code in _LATER or code in _NOT_SIGNED or code >= httpx.codes.INTERNAL_SERVER_ERROR:
            # The URL may have expired meanwhile: the next try renews it.
            raise StatusUnavailable(message, status_code=code)
        if code != httpx.codes.OK:
            raise StatusRefused(message, status_code=code)


def _size_of(place: Path) -> int:
    return place.stat().st_size if place.exists() else 0


def _inside(folder: Path, name: str) -> Path:
    """The local path of a file of this name.

    Raises:
        StatusRefused: It is outside the folder.
    """
    root = folder.resolve()
    place = (root / name).resolve()
    if place == root or not place.is_relative_to(root):
        raise StatusRefused(f"the service lists a file {name!r}, which is outside its folder")
    return place
