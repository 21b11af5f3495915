"""What everything above works with: one bundle instead of eight arguments each."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from tinker_recovery.clock import Clock
from tinker_recovery.journal import Notebook
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.service import Backend, StatusReader
from tinker_recovery.telemetry import EventSink

Spawn = Callable[[Callable[[], Coroutine[object, object, None]]], object]
"""Starts something in the background, within the Supervisor's life."""


@dataclass(frozen=True, slots=True, eq=False)
class Collaborators:
    """What a Supervisor's parts share, from its entry to its exit.

    Attributes:
        policy: The user's policy.
        backend: Creates and closes clients.
        reader: Reads statuses and listings.
        notebook: The journal's notes on checkpoints.
        events: Where progress is reported.
        clock: Time and chance.
        spawn: Runs something in the background.
    """

    policy: RecoveryPolicy
    backend: Backend
    reader: StatusReader
    notebook: Notebook
    events: EventSink
    clock: Clock
    spawn: Spawn
