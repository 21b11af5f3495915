"""The notes of the journal for the event loop: each call runs in a worker thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.to_thread

from tinker_recovery.journal.journal import Journal, Notes

_T = TypeVar("_T")


class Notebook(AbstractAsyncContextManager["Notebook"]):
    """A journal's notes, to be awaited; entering it opens the journal, leaving it closes it.

    A write that has begun is carried through even if whoever waits for it is cancelled: it is on
    disk or it failed, and nobody is left to guess.

    Raises:
        JournalError: From any call.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def __aenter__(self) -> Self:
        await self.notes()  # refused at once, and not at the first thing worth writing down
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._do(self._journal.close)

    async def notes(self) -> Notes:
        """Everything noted of this service's checkpoints."""
        return await self._do(self._journal.notes)

    async def pin(self, path: str, reason: str) -> None:
        """Keep a checkpoint for ever."""
        await self._do(lambda: self._journal.pin(path, reason))

    async def unpin(self, path: str) -> bool:
        """Take the pin back; whether there was one."""
        return await self._do(lambda: self._journal.unpin(path))

    async def mark_bad(self, path: str, reason: str) -> None:
        """Never recover from this checkpoint again."""
        await self._do(lambda: self._journal.mark_bad(path, reason))

    async def write_deletion(self, path: str, line: str) -> None:
        """The newest line of a deletion."""
        await self._do(lambda: self._journal.write_deletion(path, line))

    async def note_sizes(self, sizes: Mapping[str, int]) -> None:
        """Sizes at first sight; one noted before stays as it is."""
        await self._do(lambda: self._journal.note_sizes(sizes))

    async def note_canary(self, path: str, said: str) -> None:
        """The fingerprint of what the canary answered on a checkpoint's weights."""
        await self._do(lambda: self._journal.note_canary(path, said))

    async def note_files(self, path: str, said: str) -> None:
        """Checksums of a checkpoint's files at first sight; those noted before stay."""
        await self._do(lambda: self._journal.note_files(path, said))

    async def note_optimizer(self, sdk: str, against: str) -> None:
        """What speaks against the service's restores with optimizer; empty if nothing does."""
        await self._do(lambda: self._journal.note_optimizer(sdk, against))

    async def forget(self, paths: list[str]) -> None:
        """Everything noted of checkpoints that are gone for good."""
        await self._do(lambda: self._journal.forget(paths))

    async def _do(self, call: Callable[[], _T]) -> _T:
        # Not abandoned on cancellation, which is what carries a write through.
        return await anyio.to_thread.run_sync(call)
