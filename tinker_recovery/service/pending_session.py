"""A session being opened in a thread of its own, which may outlive the need for it.

The first call of a ServiceClient blocks its thread until the service has opened a session, and such
a thread cannot be stopped, only abandoned; an abandoned thread closes what it created. A session
does not depend on what the client is created from, so it can be opened while that is still being
selected.
"""

from __future__ import annotations

import contextvars
import gc
import threading
import time
from concurrent.futures import Future
from typing import Any

import tinker

from tinker_recovery.service import closing
from tinker_recovery.service.base import (
    FromBaseModel,
    FromCallable,
    FromCheckpoint,
    Origin,
    ServiceFactory,
)
from tinker_recovery.service.sdk_workarounds import make_http_clients


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
    """Run the finalizers of earlier ServiceClients in this thread.

    Each leaves the HTTP client of its first request open. If that client is collected in a thread
    with a running event loop, its finalizer schedules closing its file descriptor in that loop. By
    then the descriptor may belong to the first connection of the next ServiceClient, which is then
    never read again and times out after a minute (tinker 0.38, measured: once in 300). In a thread
    without a loop, such as this one, nothing is scheduled. The oldest generation is not collected,
    as that may take long.
    """
    gc.collect(1)


class PendingSession:
    """A ServiceClient being opened, and then the training client being created with it.

    Starts its thread at once; no method blocks.

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
        """Done when the session is open, or opening it has failed."""
        self.submitted: Future[Any] = Future()
        """Done when the creation is submitted: what the SDK returned for it, or its error."""
        self.finished: Future[None] = Future()
        """Done when the thread is about to end."""
        for future in (self.opened, self.submitted, self.finished):
            # Running from the start, so that cancelling a wait cannot cancel the future.
            future.set_running_or_notify_cancel()
        self.service: tinker.ServiceClient | None = None
        self.creation: Future[Any] | None = None
        """The submitted creation, if the SDK returned a future of it."""
        threading.Thread(
            target=self._run, name="tinker_recovery pending session", daemon=True
        ).start()

    @property
    def is_open(self) -> bool:
        """Whether the session is open, and nothing was submitted in it yet."""
        return self.opened.done() and not self.submitted.done()

    @property
    def session_id(self) -> str | None:
        """The id of the session once it is open; None if opening it failed, or it is not known."""
        if self.submitted.done() or not self.opened.done():
            return None
        holder = getattr(self.service, "holder", None)
        ask = getattr(holder, "get_session_id", None)
        return None if ask is None else str(ask())

    def submit(self, origin: Origin) -> None:
        """Set what the client is to be created from; once."""
        self._wanted.set_result((origin, contextvars.copy_context()))

    def release(self) -> None:
        """Let the thread end if it still waits for :meth:`submit`."""
        with self._lock:
            if not self._wanted.done():
                self._wanted.set_result(None)

    def abandon(self) -> tinker.ServiceClient | None:
        """Give the session up; returns the ServiceClient to close, None if the thread does that."""
        with self._lock:
            self._abandoned = True
            return self.service if self.finished.done() else None

    def _run(self) -> None:
        # Gives the interpreter's lock back to who started this thread, and waits for that just now.
        time.sleep(0.001)
        try:
            _collect_earlier_clients()
            self.service = self._factory()
            # Opens the session, as the SDK's own creating calls do first. An SDK without this
            # attribute opens it when the creation is submitted.
            getattr(self.service, "holder", None)
            self.opened.set_result(None)
            if self.standby:
                make_http_clients(self.service)
            _collect_earlier_clients()
            wanted = self._wanted.result()
            if wanted is not None and not self._abandoned:
                origin, context = wanted
                # Spans of the user's own start= belong to the span it was requested in.
                self.submitted.set_result(context.run(_submit, self.service, origin))
        except BaseException as error:  # noqa: BLE001 - raised by the wait for the creation
            self.submitted.set_exception(error)
        finally:
            if not self.opened.done():
                self.opened.set_result(None)
            self._finish()

    def _finish(self) -> None:
        # Closing a ServiceClient that is still opening its session does nothing, so the thread has
        # to do it itself if it was abandoned.
        with self._lock:
            self.finished.set_result(None)
            abandoned = self._abandoned
        if abandoned and self.service is not None:
            detail = "abandoned while it was being created"
            closing.close_here(self.service, "interrupted", detail, deadline_s=closing.ABANDON_S)
