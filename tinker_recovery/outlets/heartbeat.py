"""Heartbeats to a dead man's monitor, which raises the alarm once they cease."""

from __future__ import annotations

import logging
import math
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Final

from tinker_recovery.clock import Clock
from tinker_recovery.outlets.secret_urls import check_http
from tinker_recovery.outlets.worker import Worker
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

BEAT_S: Final = 60.0
"""Seconds between two heartbeats at least."""

LOOK_S: Final = 10.0
"""Seconds between two looks at the progress."""

TIMEOUT_S: Final = 10.0
"""How long the monitor has to answer."""

FRESH_S: Final = 5.0
"""A heartbeat that could not be sent within this time is not sent any more."""


class Heartbeat:
    """Asks for an address (GET) while runs make progress.

    Args:
        url: The address; a secret.
    """

    def __init__(self, url: str) -> None:
        self._url = check_http("heartbeat_url", url)

    def worker(self) -> Worker[float]:
        """What sends."""
        return Worker("heartbeat_url", self._send, most=1)

    def _send(self, beats: Sequence[float]) -> None:
        # One that waited behind another that hung would speak for a run that may be dead by now.
        if time.monotonic() - beats[-1] <= FRESH_S:
            request = urllib.request.Request(self._url, headers={"User-Agent": "tinker_recovery"})  # noqa: S310 - http or https, as was checked
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - as above
                answer.read(1024)

    async def serve(
        self,
        worker: Worker[float],
        progress: Callable[[], object],
        clock: Clock,
    ) -> None:
        """Send heartbeats until cancelled.

        Args:
            worker: What sends them.
            progress: A value that is another one once a run has made progress; None while no run
                is under way.
            clock: Time.
        """
        seen: object = None
        beaten = -math.inf
        while True:
            now, current = clock.monotonic(), _asked(progress)
            if current is not None and current != seen and now - beaten >= BEAT_S:
                seen, beaten = current, now
                worker.put(time.monotonic())
            await clock.sleep(LOOK_S)


def _asked(progress: Callable[[], object]) -> object:
    """The progress; None if asking for it fails, which must end nothing but the heartbeats."""
    try:
        return progress()
    except Exception:
        logger.exception("the progress of runs cannot be read: no heartbeat is sent")
        return None
