"""Outlets: everything that a Supervisor sends to other services, from its entry to its exit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import anyio

from tinker_recovery.clock import Clock
from tinker_recovery.outlets.heartbeat import Heartbeat, Progress
from tinker_recovery.outlets.notify import Message, Notify, Teller, notify_by
from tinker_recovery.outlets.trackers import Ended, Item, Point, Saved, trackers_by
from tinker_recovery.outlets.worker import Worker
from tinker_recovery.telemetry import RecoveryEvent, names

EXIT_S: Final = 5.0
"""How long the exit waits for what is still being sent."""


class Outlets:
    """Where events, metrics and progress go besides the log and the journal.

    Args:
        notify: See :class:`Notify`; None reads the variable.
        heartbeat_url: See :class:`Heartbeat`.
        trackers: See :mod:`~tinker_recovery.outlets.trackers`.

    Raises:
        UsageError: One of them is not allowed. No address is shown.
    """

    def __init__(
        self,
        notify: Sequence[str] | Notify | None = (),
        heartbeat_url: str | None = None,
        trackers: Iterable[object] = (),
    ) -> None:
        chosen = notify_by(notify)
        self._teller = Teller(chosen.topics)
        self._receivers: Sequence[Worker[Message]] = chosen.workers()
        self._heartbeat = None if heartbeat_url is None else Heartbeat(heartbeat_url)
        self._trackers = trackers_by(trackers)
        self._beats: Worker[float] | None = None

    def __repr__(self) -> str:
        beats = self._heartbeat is not None
        return (
            f"<Outlets: {len(self._receivers)} to notify, {len(self._trackers)} trackers, "
            f"{'a' if beats else 'no'} heartbeat>"
        )

    def note_event(self, event: RecoveryEvent) -> None:
        """An event of a run; in the event loop's thread."""
        if self._receivers:
            self._tell(self._teller.of_event(event))
        step = event.fields.get(names.CHECKPOINT_STEP)
        if event.name == names.EVENT_CHECKPOINT_SAVED and isinstance(step, int):
            self._track(Saved(event.run, step))

    def run_ended(self, run: str, error: BaseException | None) -> None:
        """A run is over, well or by this error; in the event loop's thread."""
        if self._receivers:
            self._tell(self._teller.of_end(run, error))
        self._track(Ended(run))

    def reported(
        self,
        run: str,
        step: int,
        metrics: Mapping[str, float],
        *,
        attempt: int,
        start_step: int,
        recoveries: int,
    ) -> None:
        """What the loop reports of a step; from the loop's own thread."""
        if self._trackers:
            self._track(Point(run, step, dict(metrics), attempt, start_step, recoveries))

    def _track(self, item: Item) -> None:
        for tracker in self._trackers:
            tracker.put(item)

    def _tell(self, message: Message | None) -> None:
        if message is not None:
            for receiver in self._receivers:
                receiver.put(message)

    def start(
        self,
        spawn: Callable[[Callable[[], Any]], object],
        progress: Progress,
        clock: Clock,
    ) -> None:
        """Begin the heartbeats, if there are to be any. All else begins with the first thing sent.

        Args:
            spawn: Runs something in the background, until the Supervisor is left.
            progress: See :meth:`Heartbeat.serve`.
            clock: Time.
        """
        if self._heartbeat is not None:
            self._beats = self._heartbeat.worker()
            spawn(functools.partial(self._heartbeat.serve, self._beats, progress, clock))

    async def finish(self) -> None:
        """Wait, for :data:`EXIT_S` at most, until what is under way is sent. No heartbeat is."""
        if self._beats is not None:
            self._beats.close()
        workers: list[Worker[Any]] = [*self._receivers, *self._trackers]
        async with anyio.create_task_group() as group:
            for worker in workers:
                group.start_soon(worker.finish, EXIT_S)


async def send_now(notify: Notify, what: str, text: str) -> None:
    """Send one message, and wait for :data:`EXIT_S` at most until it is sent."""
    async with anyio.create_task_group() as group:
        for worker in notify.workers():
            worker.put(Message(what, text))
            group.start_soon(worker.finish, EXIT_S)
