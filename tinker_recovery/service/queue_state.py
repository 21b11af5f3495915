"""Noticing that the service has paused a run for lack of capacity.

A paused run looks exactly like one that hangs, and may wait for hours. Only the replies to the
SDK's polls distinguish the two, and the SDK passes those to its own observer, which logs them. Ours
is installed in front of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import tinker
from tinker.lib.api_future_impl import QueueState, QueueStateObserver

logger = logging.getLogger("tinker_recovery")

_PAUSED = frozenset({QueueState.PAUSED_CAPACITY, QueueState.PAUSED_RATE_LIMIT})
_ATTRIBUTE = "_queue_state_logger"


class _Observer(QueueStateObserver):
    def __init__(self, paused: Callable[[], object], pass_on: Callable[..., object]) -> None:
        self._paused = paused
        self._pass_on = pass_on

    def on_queue_state_change(
        self, queue_state: QueueState, queue_state_reason: str | None
    ) -> None:
        if queue_state in _PAUSED:
            self._paused()
        self._pass_on(queue_state, queue_state_reason)


def watch_queue_state(training: tinker.TrainingClient, paused: Callable[[], object]) -> None:
    """Call ``paused``, in the SDK's thread, each time the service reports a pause."""
    pass_on = getattr(getattr(training, _ATTRIBUTE, None), "on_queue_state_change", None)
    if pass_on is None:
        # An SDK without that attribute: a pause longer than stall_after_s will look like silence.
        logger.warning(
            "capacity pauses cannot be detected with this version of the tinker SDK: set "
            "stall_after_s above the longest pause you expect"
        )
        return
    setattr(training, _ATTRIBUTE, _Observer(paused, pass_on))


def watch_sampler(client: tinker.SamplingClient, paused: Callable[[], object]) -> None:
    """As :func:`watch_queue_state`, of a sampling client, which is its own observer."""
    if "on_queue_state_change" not in vars(client):
        observer = _Observer(paused, client.on_queue_state_change)
        vars(client)["on_queue_state_change"] = observer.on_queue_state_change


HELD_BACK_S = 10.0
"""The SDK reduces its sampling requests for this long after the service has refused one."""


def is_held_back(client: tinker.SamplingClient) -> bool:
    """Whether the SDK holds samples back, since the service has just said that it has too many.

    The SDK tries again for as long as that lasts, and calls no observer.
    """
    until = getattr(client.holder, "_sample_backoff_until", None)
    return until is not None and time.monotonic() - until < HELD_BACK_S
