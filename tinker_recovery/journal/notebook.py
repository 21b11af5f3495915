"""The journal's notes for the event loop: each call runs in a worker thread."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import anyio
import anyio.to_thread

from tinker_recovery.journal.journal import Journal
from tinker_recovery.shielding import to_the_end

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _threaded(
    method: Callable[Concatenate[Journal, _P], _T],
) -> Callable[Concatenate[Notebook, _P], Coroutine[Any, Any, _T]]:
    """The async counterpart of a method of the Journal."""

    async def call(self: Notebook, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._do(functools.partial(method, self._journal, *args, **kwargs))

    return functools.update_wrapper(call, method)


class Notebook:
    """A journal's notes as coroutines; entering it opens the journal, leaving it closes it.

    A cancelled write is finished first, so the note is either on disk or the write has failed.

    Raises:
        JournalError: From any call.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.path = journal.path
        """The journal's file; None in memory."""

    async def __aenter__(self) -> Self:
        await self.notes()  # a journal that cannot be used fails here, not at the first write
        return self

    async def __aexit__(self, *_: object) -> None:
        await to_the_end(self._do(self._journal.close))

    notes = _threaded(Journal.notes)
    is_pinned = _threaded(Journal.is_pinned)
    relied_on = _threaded(Journal.relied_on)
    pin = _threaded(Journal.pin)
    unpin = _threaded(Journal.unpin)
    mark_bad = _threaded(Journal.mark_bad)
    write_deletion = _threaded(Journal.write_deletion)
    check_deletion = _threaded(Journal.check_deletion)
    note_sizes = _threaded(Journal.note_sizes)
    note_files = _threaded(Journal.note_files)
    note_canary = _threaded(Journal.note_canary)
    note_prompt = _threaded(Journal.note_prompt)
    note_optimizer = _threaded(Journal.note_optimizer)
    note_metadata = _threaded(Journal.note_metadata)
    note_keeps_metadata = _threaded(Journal.note_keeps_metadata)
    write_publication = _threaded(Journal.write_publication)
    end_publication = _threaded(Journal.end_publication)
    note_made_once = _threaded(Journal.note_made_once)
    made_once = _threaded(Journal.made_once)
    forget = _threaded(Journal.forget)

    async def _do(self, call: Callable[[], _T]) -> _T:
        # Not abandoned on cancellation: that is what finishes a write.
        return await anyio.to_thread.run_sync(call)
