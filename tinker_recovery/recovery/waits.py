"""Waits: what one incident has waited for so far, and what is said of it."""

from __future__ import annotations

import math

from tinker_recovery.clock import Clock, Reminder
from tinker_recovery.detection.outage import Outage
from tinker_recovery.errors import DeadlineExceeded
from tinker_recovery.faults import DetectedBy, Fault, Kind, VerdictRule
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery import words
from tinker_recovery.telemetry import EventSink, names

REMIND_S = 20.0
"""Seconds of a recovery until it is first said what it waits for; ever longer after that."""

_NEVER_ACCEPTED = frozenset({DetectedBy.START, DetectedBy.JOURNAL})
"""Where nothing has been trained here yet, a credential that is refused is a wrong one."""


class Waits:
    """The waits of one incident.

    Args:
        fault: The fault it began with.
        policy: The user's policy.
        events: Where they are reported.
        clock: Time.
        outage: Where it is noted whether the service answers.
    """

    def __init__(
        self,
        fault: Fault,
        policy: RecoveryPolicy,
        events: EventSink,
        clock: Clock,
        outage: Outage,
    ) -> None:
        self._fault, self._policy, self._events = fault, policy, events
        self._clock, self._outage = clock, outage
        self._began = clock.monotonic()
        self._reported = False
        self._reminder = Reminder(REMIND_S)
        self._refused_since = self._began if fault.kind is Kind.UNAUTHORIZED else None
        self.missed = 0
        """Tries that were not over by their deadline."""
        self.last: Exception | None = None
        """What the last try failed with."""

    @property
    def lasted_s(self) -> float:
        """Seconds since the incident is dealt with."""
        return self._clock.monotonic() - self._began

    def failed(self, error: Exception, *, waits: bool) -> bool:
        """Note what a try failed with; whether it is one wait after another."""
        self.missed += isinstance(error, DeadlineExceeded)
        repeated, self._reported, self.last = self._reported and waits, waits, error
        return repeated

    def for_credential(self, rule: VerdictRule | None) -> bool:
        """Whether a credential is refused that may be rotated just now; says so the first time."""
        if rule is None or rule.kind is not Kind.UNAUTHORIZED:
            self._refused_since = None
            return False
        if self._fault.detected_by in _NEVER_ACCEPTED:
            return False
        first = self._refused_since is None or not self._reported
        if self._refused_since is None:
            self._refused_since = self._clock.monotonic()
        left_s = self.grace_left_s()
        if first and left_s > 0:
            self._events.emit(
                names.EVENT_WAITING,
                self._fault.run,
                f"the credential is refused (HTTP 401); another one is waited for for {left_s:.0f} "
                "s (credential_grace_s), as it may be rotated just now",
            )
        return left_s > 0

    def grace_left_s(self) -> float:
        """Seconds left to wait for a credential; infinite if none is refused."""
        if self._refused_since is None:
            return math.inf
        waited_s = self._clock.monotonic() - self._refused_since
        return max(0.0, self._policy.credential_grace_s - waited_s)

    def remind(self, rule: VerdictRule | None, *, waits: bool) -> None:
        """A try has failed: say what is waited for, if the service is, and when it is time."""
        unanswered = rule is not None and rule.kind in words.UNANSWERED
        if unanswered and not words.lacks(self.last):
            self._outage.begins()
        if waits and self._reminder.is_due(self.lasted_s):
            silent_s, most_s = self.lasted_s + self._fault.silent_s, self._policy.max_wait_s
            message = words.waiting(silent_s, rule, self.last, max_s=most_s)
            self._events.emit(names.EVENT_WAITING, self._fault.run, message)
