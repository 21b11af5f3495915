"""Noticing that the service has paused a run for lack of capacity.

A paused run looks exactly like one that hangs, and may wait for hours. Only the replies to the
SDK's polls distinguish the two, and the SDK passes those to its own observer, which logs them. Ours
is installed in front of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import tinker
from tinker.lib.api_future_impl import QueueState, QueueStateObserver

logger = logging.getLogger("tinker_recovery")

_PAUSED = frozenset({QueueState.PAUSED_CAPACITY, QueueState.PAUSED_RATE_LIMIT})
_ATTRIBUTE = "_queue_state_logger"


class _Observer(QueueStateObserver):
    def __init__(self, paused: Callable[[], None], inner: Any) -> None:
        self._paused = paused
        self._inner = inner

    def on_queue_state_change(
        self, queue_state: QueueState, queue_state_reason: str | None
    ) -> None:
        if queue_state in _PAUSED:
            self._paused()
        self._inner.on_queue_state_change(queue_state, queue_state_reason)


def watch_queue_state(training: tinker.TrainingClient, paused: Callable[[], None]) -> None:
    """Call ``paused``, in the SDK's thread, each time the service reports a pause."""
    sdks_own = getattr(training, _ATTRIBUTE, None)
    if sdks_own is None:
        # An SDK without that attribute: a pause longer than stall_after_s will look like silence.
        logger.warning(
            "capacity pauses cannot be detected with this version of the tinker SDK: set "
            "stall_after_s above the longest pause you expect"
        )
        return
    setattr(training, _ATTRIBUTE, _Observer(paused, sdks_own))
