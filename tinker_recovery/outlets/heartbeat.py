"""Heartbeats to a dead man's monitor, which raises the alarm once they cease."""

from __future__ import annotations

import logging
import math
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from tinker_recovery.clock import Clock
from tinker_recovery.outlets.secret_urls import check_http
from tinker_recovery.outlets.worker import Worker
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

Progress: TypeAlias = Callable[[], Mapping[str, object]]

BEAT_S: Final = 60.0
"""Seconds between two heartbeats at least."""

LOOK_S: Final = 10.0
"""Seconds between two looks at the progress."""

TIMEOUT_S: Final = 10.0
"""How long the monitor has to answer."""

FRESH_S: Final = 5.0
"""A heartbeat that could not be sent within this time is not sent any more."""


class Heartbeat:
    """Asks for an address (GET) while all runs make progress.

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
        progress: Progress,
        clock: Clock,
    ) -> None:
        """Send heartbeats until cancelled.

        One is sent once every run under way has made progress since the last: one address speaks
        for all runs, so those that train must not hide one that is stuck.

        Args:
            worker: What sends them.
            progress: Of each run under way, a value that is another one once it has made progress.
            clock: Time.
        """
        seen: Mapping[str, object] = {}
        beaten = -math.inf
        while True:
            now, current = clock.monotonic(), _asked(progress)
            due = bool(current) and now - beaten >= BEAT_S
            if due and all(run not in seen or seen[run] != at for run, at in current.items()):
                seen, beaten = current, now
                worker.put(time.monotonic())
            await clock.sleep(LOOK_S)


def _asked(progress: Progress) -> Mapping[str, object]:
    """The progress; none if asking for it fails, which must end nothing but the heartbeats."""
    try:
        return progress()
    except Exception:
        logger.exception("the progress of runs cannot be read: no heartbeat is sent")
        return {}
