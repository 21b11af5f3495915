"""The future of one supervised request, and what can be seen of any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import tinker
from tinker.lib.public_interfaces.api_future import APIFuture

from tinker_recovery.forks import HomeProcess
from tinker_recovery.service.waiting import ended

_T = TypeVar("_T")


class SupervisedFuture(APIFuture[_T]):
    """An APIFuture whose request outlives a wait that a fault cancels.

    Cancelling a wait cancels the request, as with the SDK's own; except after a fault, when the
    request ends with its client. For a request that is cancelled just as it fails, the SDK logs a
    traceback, and after a fault most requests fail.

    Args:
        future: The SDK's.
        over: Whether the client was retired by a fault, or the process is stopping.
        seen: Called with the error that a wait for the result raises.
        home: The process whose client it is of.
    """

    __slots__ = ("_future", "_home", "_over", "_seen")

    def __init__(
        self,
        future: Future[_T],
        over: Callable[[], bool],
        seen: Callable[[BaseException], None],
        home: HomeProcess,
    ) -> None:
        self._future = future
        self._over = over
        self._seen = seen
        self._home = home

    def future(self) -> Future[_T]:
        """The SDK's concurrent future."""
        return self._future

    def result(self, timeout: float | None = None) -> _T:
        """Block for the result; raises the request's error, or TimeoutError."""
        if not self._home.is_here:
            self._check_arrives()
        return self._result(timeout)

    def _result(self, timeout: float | None = None) -> _T:
        try:
            return self._future.result(timeout)
        except Exception as error:
            if self._future.done():
                self._seen(error)
            raise

    async def result_async(self, timeout: float | None = None) -> _T:  # noqa: ASYNC109 - the SDK's signature
        """Wait for the result; raises the request's error, or TimeoutError."""
        self._check_arrives()
        if timeout is None:
            return await self._arrived()
        async with asyncio.timeout(timeout):
            return await self._arrived()

    def __await__(self) -> Generator[Any, None, _T]:
        self._check_arrives()
        return self._arrived().__await__()

    async def _arrived(self) -> _T:
        try:
            await ended(self._future)
        except asyncio.CancelledError:
            if not self._over():
                self._future.cancel()
            raise
        if self._future.cancelled():
            raise asyncio.CancelledError
        return self._result()

    def _check_arrives(self) -> None:
        # In a forked child there is no thread that would bring it.
        if not self._future.done():
            self._home.check(self)


def is_client_too(future: object) -> bool:
    """Whether this is the SDK's future of a client that can still be used as the client.

    Of these the SDK's deprecated ``x_async`` returns the client; of others, their future.
    """
    return isinstance(future, tinker.SamplingClient | tinker.TrainingClient)


def end_of(future: Future[Any]) -> tuple[bool, BaseException | None]:
    """Whether a request that has ended was cancelled, and its error if it has one.

    In one look, for each of which the future is locked.
    """
    try:
        return False, future.exception()
    except CancelledError:
        return True, None


def succeeded(future: Future[Any]) -> bool:
    """Whether a request that has ended has a result."""
    return end_of(future) == (False, None)


def is_settled(saving: Future[Any]) -> bool:
    """Whether a save has been carried out, or never will be, by the service's word."""
    return saving.done() and (
        succeeded(saving)
        or (not saving.cancelled() and isinstance(saving.exception(), tinker.RequestFailedError))
    )
