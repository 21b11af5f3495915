"""The limits of what is read over HTTP: bytes, values, entries and time.

Every body goes through :func:`bound`, packed or not, whatever its headers say; listings of many
pages through :class:`Listing`. A service, or whatever answers in its place, is not believed about
how much it will send.
"""

from __future__ import annotations

import contextlib
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import anyio
import httpx

from tinker_recovery.errors import StatusRefused
from tinker_recovery.policy import RecoveryPolicy

ACCEPTED = "gzip"
"""The one coding that is asked for, and unpacked: its output can be limited piece by piece."""

BYTES_A_VALUE = 16
"""A reply may have one value for so many of the bytes that are allowed: `[[],[],...]` takes twenty
times its length in memory."""

REST_S = 1.0
"""Seconds that the end of a packed reply is waited for, once all that it holds is there.

A reply that is left before its end costs its connection, which then looks as if the service had
closed it.
"""

_EMPTY_PAGES = 200
_GROWTH = 1000
_GZIP = 31


def _default(setting: str) -> Any:
    return RecoveryPolicy.model_fields[setting].default


@dataclass(frozen=True, slots=True)
class ReplyLimits:
    """What is read at most; see the settings of the same purpose in ``RecoveryPolicy``.

    Attributes:
        reply_bytes: Bytes of one reply, unpacked.
        listed: Entries of a whole listing.
        listing_s: Seconds for a whole listing.
        export_bytes: Bytes of one export, where the service does not say how large it is.
    """

    reply_bytes: int = _default("max_reply_bytes")
    listed: int = _default("max_listed")
    listing_s: float = _default("listing_timeout_s")
    export_bytes: int = _default("max_export_bytes")

    @classmethod
    def of(cls, policy: RecoveryPolicy) -> Self:
        """Those of a policy."""
        return cls(
            policy.max_reply_bytes,
            policy.max_listed,
            policy.listing_timeout_s,
            policy.max_export_bytes,
        )


DEFAULT_LIMITS = ReplyLimits()


class ReplyTooLarge(StatusRefused):
    """A body has more than its limit, or is packed in a way that cannot be limited."""


def bound(reply: httpx.Response, limit: int, *, allowed: str, unpack: bool = True) -> None:
    """Limit the body of a reply, before it is read; to be called in a response hook.

    Args:
        reply: Its body is unpacked here, and no more by httpx.
        limit: Most bytes, packed and unpacked.
        allowed: What is allowed, for the error: "67 bytes: raise max_reply_bytes".
        unpack: Whether it may be packed with gzip. What may not is a file, and read by a blocking
            client.

    Raises:
        ReplyTooLarge: Its headers say that it is more, or packed otherwise. While it is read, the
            same is raised as soon as it is.
    """
    coding = reply.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity" and not (unpack and coding == ACCEPTED):
        asked = ACCEPTED if unpack else "identity"
        where = reply.request.url.path if unpack else "a file"
        raise ReplyTooLarge(
            f"the answer to {where} is packed with {coding[:40]}, although {asked} was asked for",
            status_code=reply.status_code,
        )

    def too_large() -> ReplyTooLarge:
        where = reply.request.url.path if unpack else "a file"
        return ReplyTooLarge(
            f"the answer to {where} has more than {allowed}", status_code=reply.status_code
        )

    length = reply.headers.get("Content-Length", "")
    if length.isdecimal() and (len(length) > 19 or int(length) > limit):  # noqa: PLR2004 - 64 bits
        raise too_large()
    if reply.is_stream_consumed:
        if len(reply.content) > limit:  # of a transport that had read it all
            raise too_large()
        return
    if coding == ACCEPTED:
        del reply.headers["Content-Encoding"]
    stream = reply.stream
    if unpack:
        assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - of an AsyncClient
        reply.stream = _Bounded(stream, limit, too_large, packed=coding == ACCEPTED)
    else:
        assert isinstance(stream, httpx.SyncByteStream)  # noqa: S101 - of a Client
        reply.stream = _BoundedFile(stream, limit, too_large)


class _BoundedFile(httpx.SyncByteStream):
    def __init__(
        self, stream: httpx.SyncByteStream, limit: int, too_large: Callable[[], ReplyTooLarge]
    ) -> None:
        self._stream = stream
        self._limit = limit
        self._too_large = too_large

    def __iter__(self) -> Iterator[bytes]:
        total = 0
        for piece in self._stream:
            total += len(piece)
            if total > self._limit:
                raise self._too_large()
            yield piece

    def close(self) -> None:
        self._stream.close()


class _Bounded(httpx.AsyncByteStream):
    def __init__(
        self,
        stream: httpx.AsyncByteStream,
        limit: int,
        too_large: Callable[[], ReplyTooLarge],
        *,
        packed: bool,
    ) -> None:
        self._stream = stream
        self._limit = limit
        self._too_large = too_large
        self._unpacker = zlib.decompressobj(_GZIP) if packed else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        raw = total = 0
        pieces = aiter(self._stream)
        try:
            async for piece in pieces:
                raw += len(piece)
                out = self._unpacked(piece, self._limit - total + 1)
                total += len(out)
                if raw > self._limit or total > self._limit:
                    raise self._too_large()
                if out:
                    yield out
                if self._unpacker is not None and self._unpacker.eof:
                    await _pass_over(pieces, self._limit - raw)
                    return
        finally:
            del pieces  # the traceback of an error would keep it, and the connection with it

    def _unpacked(self, piece: bytes, most: int) -> bytes:
        if self._unpacker is None:
            return piece
        try:
            return self._unpacker.decompress(piece, most)
        except zlib.error as error:
            raise httpx.DecodingError(str(error)) from error

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _pass_over(rest: AsyncIterator[bytes], most: int) -> None:
    """Read what follows a packed body, which is nothing, to the end of the reply.

    Only then its connection can be used again. What does not end is left, with its connection.
    """
    with anyio.move_on_after(REST_S), contextlib.suppress(httpx.TransportError):
        async for piece in rest:
            most -= len(piece)
            if most < 0:
                return


def parsed(body: bytes, limit: int) -> object:
    """A JSON body.

    Args:
        body: Within its limit.
        limit: Bytes that were allowed.

    Raises:
        ValueError: It is no JSON, or has too many values for its limit, or too deep ones.
    """
    allowed = limit // BYTES_A_VALUE
    if len(body) > allowed:  # else it has no room for so many
        values = body.count(b",") + body.count(b"[") + body.count(b"{")
        if values > allowed:
            raise ValueError(
                f"it has {values} values, and {allowed} are allowed: raise max_reply_bytes if that "
                "is right"
            )
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("its values lie too deep within each other") from None


class Listing:
    """The limits of a listing that is read page by page.

    Args:
        what: What is listed, for errors.
        limits: How much, and how long.
        monotonic: Seconds of a clock.
    """

    def __init__(
        self,
        what: str,
        limits: ReplyLimits,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._limits = limits
        self._monotonic = monotonic
        self._began = monotonic()
        self._entries = 0
        self._empty = 0
        self._first_total: int | None = None

    def note_page(self, entries: int, total: int | None = None) -> None:
        """A page was read.

        Args:
            entries: How many it has.
            total: How many the whole listing has, as the service says.

        Raises:
            StatusRefused: The listing has more than is allowed, or does not come to its end.
        """
        self._entries += entries
        self._empty = 0 if entries else self._empty + 1
        if self._entries > self._limits.listed:
            self._refuse(f"has more than {self._limits.listed} entries: raise max_listed")
        if self._empty > _EMPTY_PAGES:
            self._refuse("gives one empty page after the other")
        if self._monotonic() - self._began > self._limits.listing_s:
            self._refuse(f"takes longer than {self._limits.listing_s:g} s: raise listing_timeout_s")
        if total is not None:
            if self._first_total is None:
                self._first_total = total
            # Some may be added while it is read.
            if self._entries > self._first_total + max(_GROWTH, self._first_total // 10):
                self._refuse(f"keeps growing: it began with {self._first_total} entries")

    def _refuse(self, why: str) -> None:
        raise StatusRefused(f"the list of {self._what} {why}")
