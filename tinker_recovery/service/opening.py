"""A ServiceClient being opened in a thread of its own, which may outlive the wish for it.

The first call of a ServiceClient blocks its thread for as long as the service takes to open a
session, and such a thread cannot be stopped, only abandoned. So whoever abandons it leaves word,
and the thread closes what it made. The session does not depend on what the client is going to be
made from, so it can be opened while that is still being chosen.
"""

from __future__ import annotations

import contextvars
import gc
import threading
from concurrent.futures import Future
from typing import Any

import tinker

from tinker_recovery.service.base import (
    FromBaseModel,
    FromCallable,
    FromCheckpoint,
    Origin,
    ServiceFactory,
)


def _submit(service: tinker.ServiceClient, origin: Origin) -> Any:
    match origin:
        case FromBaseModel(base_model, options):
            return service.create_lora_training_client(base_model, **options)
        case FromCheckpoint(path, optimizer=True):
            return service.create_training_client_from_state_with_optimizer(path)
        case FromCheckpoint(path):
            return service.create_training_client_from_state(path)
        case FromCallable(start):
            return start(service)


def _collect_earlier_clients() -> None:
    """Have what earlier ServiceClients left to the garbage collector collected here and now.

    Each leaves the HTTP client of its first request open. Collected in a thread with a running
    event loop, that client's finalizer closes it later in that loop, by the number its socket had:
    by then perhaps that of the next ServiceClient's first connection, which is never read again,
    and times out after a minute (tinker 0.38, ran: once in 300). In a thread without a loop, such
    as this, it does nothing of the kind. The older generation is left alone, as that may take long.
    """
    gc.collect(1)


class PendingSession:
    """One ServiceClient on its way to a training client. Begins at once, and never blocks.

    Args:
        factory: Returns a fresh ServiceClient.
        standby: Whether it is opened long before it is needed; see :attr:`standby`.
    """

    def __init__(self, factory: ServiceFactory, *, standby: bool = False) -> None:
        self._factory = factory
        self.standby = standby
        """Whether the service may have forgotten its session by the time it is used."""
        self._lock = threading.Lock()
        self._abandoned = False
        self._wanted: Future[tuple[Origin, contextvars.Context] | None] = Future()
        self.opened: Future[None] = Future()
        """Done once there is a session, or it is clear that there is going to be none."""
        self.submitted: Future[Any] = Future()
        """Done once the creation is submitted: what the SDK gave for it, or the error."""
        self.out: Future[None] = Future()
        """Done once the thread has come out."""
        for future in (self.opened, self.submitted, self.out):
            # Running from the start, so that whoever stops waiting for it cannot cancel it.
            future.set_running_or_notify_cancel()
        self.service: tinker.ServiceClient | None = None
        self.creation: Future[Any] | None = None
        """The submitted creation, where the SDK gave a future of it."""
        threading.Thread(target=self._run, name="tinker_recovery opening", daemon=True).start()

    @property
    def is_open(self) -> bool:
        """Whether there is a session, and nothing was submitted in it yet."""
        return self.opened.done() and not self.submitted.done()

    def submit(self, origin: Origin) -> None:
        """Say what the client is to be made from; once."""
        self._wanted.set_result((origin, contextvars.copy_context()))

    def release(self) -> None:
        """Let the thread come out, if it waits for :meth:`submit`: there is nothing to submit."""
        with self._lock:
            if not self._wanted.done():
                self._wanted.set_result(None)

    def abandon(self) -> tinker.ServiceClient | None:
        """Nobody wants it any more; returns what to close, or leaves that to the thread."""
        with self._lock:
            self._abandoned = True
            return self.service if self.out.done() else None

    def _run(self) -> None:
        try:
            _collect_earlier_clients()
            self.service = self._factory()
            # Opens the session, as the SDK's own creating calls do first. An SDK without it opens
            # the session when the creation is submitted.
            getattr(self.service, "holder", None)
            self.opened.set_result(None)
            _collect_earlier_clients()
            wanted = self._wanted.result()
            if wanted is not None and not self._abandoned:
                origin, context = wanted
                # What the user's own start= does belongs to the span it was asked for in.
                self.submitted.set_result(context.run(_submit, self.service, origin))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the creation
            self.submitted.set_exception(error)
        finally:
            if not self.opened.done():
                self.opened.set_result(None)
            self._come_out()

    def _come_out(self) -> None:
        # Closing a ServiceClient that is still opening its session does nothing, so a thread that
        # was abandoned has to do it when it comes out.
        with self._lock:
            self.out.set_result(None)
            abandoned = self._abandoned
        if abandoned and self.service is not None:
            self.service.close("interrupted", "abandoned while it was being created")
