"""Hearing the service ask for patience.

A run that waits for capacity looks exactly like one that hangs, and may wait for hours. Only the
replies to the SDK's polls tell the two apart, and the SDK hands those to an observer of its own
making that writes to the log. Ours stands in front of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import tinker
from tinker.lib.api_future_impl import QueueState, QueueStateObserver

logger = logging.getLogger("tinker_recovery")

_PAUSED = frozenset({QueueState.PAUSED_CAPACITY, QueueState.PAUSED_RATE_LIMIT})
_PLACE = "_queue_state_logger"


class _Listener(QueueStateObserver):
    def __init__(self, paused: Callable[[], None], behind: Any) -> None:
        self._paused = paused
        self._behind = behind

    def on_queue_state_change(
        self, queue_state: QueueState, queue_state_reason: str | None
    ) -> None:
        if queue_state in _PAUSED:
            self._paused()
        self._behind.on_queue_state_change(queue_state, queue_state_reason)


def watch_queue_state(training: tinker.TrainingClient, paused: Callable[[], None]) -> None:
    """Have ``paused`` called, from the SDK's thread, each time the service says to wait."""
    behind = getattr(training, _PLACE, None)
    if behind is None:
        # An SDK that keeps it elsewhere: a pause longer than stall_after_s will look like silence.
        logger.warning(
            "this version of the tinker SDK does not let capacity pauses be heard: set "
            "stall_after_s above the longest one you expect"
        )
        return
    setattr(training, _PLACE, _Listener(paused, behind))
