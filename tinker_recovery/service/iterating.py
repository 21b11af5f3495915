"""The part of a SupervisedClient about where the loop's iterations begin and end."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from tinker_recovery.service.surface import PassedOn

if TYPE_CHECKING:
    from tinker_recovery.run.client_hooks import AttemptHooks


class Iterating(PassedOn):
    """Iterations left out, and those whose end the loop names itself."""

    _hooks: AttemptHooks
    _last_update: Future[Any]

    if TYPE_CHECKING:
        # The subclass has them.

        def _queue_if_due(self) -> None: ...

        def _step_ended(self, future: Future[Any]) -> None: ...

    def skip_step(self) -> None:
        """Count a step that the loop skips, so that the loop and the count agree.

        Raises:
            UsageError: It was asked inside an iteration, too late to skip it.
        """
        with self._lock:
            self._check_trains()
            self._iterations.check_whole("skip_step() was asked")
            self._queue_if_due()
            self._hooks.step_submitted(*self._iterations.ended())

    def begin_iteration(self) -> None:
        """Have the next optimizer steps belong to one iteration, until :meth:`end_iteration`.

        Raises:
            UsageError: One is under way.
        """
        with self._lock:
            self._check_trains()
            self._iterations.begin()

    def end_iteration(self) -> None:
        """End the iteration under way behind fewer optimizer steps than ``updates_per_step``.

        One begun by :meth:`begin_iteration` ends behind as many as there are; with none, it is
        counted as a step that was skipped. Otherwise does nothing between two iterations, nor once
        the attempt is over.
        """
        with self._lock:
            if self._retired is not None:
                return
            if self._iterations.inside:
                self._last_update.add_done_callback(self._step_ended)
                self._hooks.iteration_ended(*self._iterations.ended())
            elif self._iterations.open:
                self._queue_if_due()
                self._hooks.step_submitted(*self._iterations.ended())

    def leave_iteration(self) -> None:
        """An exception ends the iteration that was begun; what it has trained is in no checkpoint.

        Without an optimizer step, it counts as not begun.
        """
        with self._lock:
            self._iterations.leave()
