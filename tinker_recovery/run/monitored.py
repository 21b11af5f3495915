"""MonitoredRun: a supervised run as the Monitor sees it."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from tinker_recovery.faults import RULES, DetectedBy, Kind
from tinker_recovery.service import Asked, RunStatus, sdk_requests
from tinker_recovery.service.http import ServiceHttp, Unreached
from tinker_recovery.telemetry import EventSink, names
from tinker_recovery.telemetry.text import counted, is_are, seconds

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope
    from tinker_recovery.run.supervised import SupervisedRun

logger = logging.getLogger(names.SCOPE)

OVERDUE_S = 1.0
"""Work without progress for less is never overdue."""

OVERDUE_STEPS = 3.0
"""Work is overdue after this many times the usual time between two steps."""

ANSWER_S = 0.5
"""How long the answers under way have to say at which step a run became corrupted."""


@dataclass(frozen=True, slots=True)
class _Silence:
    """Open work without progress.

    Attributes:
        kind: What kind of fault it would be.
        lasts_s: For how long; 0 where nothing is open.
        of: What is silent, in words.
        slow_s: How long the slow ones of its kind wait for progress; None if that is not known.
    """

    kind: Kind
    lasts_s: float
    of: str
    slow_s: float | None


class MonitoredRun:
    """Turns what polling and the look at silence find into faults of the run's current attempt."""

    def __init__(self, run: SupervisedRun, events: EventSink) -> None:
        self._run = run
        self._events = events
        self._warned_of: set[tuple[AttemptScope, Kind]] = set()

    @property
    def name(self) -> str:
        """The run's name."""
        return self._run.name

    @property
    def _watched(self) -> AttemptScope | None:
        """The attempt to look at; None from a corruption on, during a recovery, at the end."""
        run, current = self._run, self._run.current
        if run.ended or run.incident or current is run.rollbacks.corrupted:
            return None
        return current

    @property
    def watched_run_id(self) -> str | None:
        """The Tinker run to ask about; None where there is none at the moment."""
        watched = self._watched
        return None if watched is None else watched.run_id

    @property
    def silent_s(self) -> float | None:
        """Seconds since its open work last made progress; None if none is open."""
        current = self._run.current
        return None if current is None else current.client.silent_s()

    def note_status(self, status: RunStatus, asked: Asked) -> None:
        """The service's answer; one about an earlier attempt is ignored."""
        current = self._watched
        if current is None or status.run_id != current.run_id:
            return
        self._run.weights = status.weights
        if status.corrupted:
            if not current.client.open_requests:
                current.declare_fault(RULES[Kind.CORRUPTED], DetectedBy.POLL)
            else:
                self._run.rollbacks.corrupted = current
                self._run.spawn(functools.partial(self._declare_corrupted, current))
        else:
            self._run.rollbacks.note_reachable(current, asked_s=asked.at_s)

    async def _declare_corrupted(self, attempt: AttemptScope) -> None:
        """Declare what a poll has found, unless a request fails at once: that knows the step.

        All that a poll knows is that the run was sound at the poll before, so that more would be
        trained again, and how much depended on which of the two was heard first.
        """
        with anyio.move_on_after(ANSWER_S), suppress(Exception):
            await attempt.client.drain()
        # What failed was posted before it counted as ended.
        self._run.mailbox.deliver()
        attempt.declare_fault(RULES[Kind.CORRUPTED], DetectedBy.POLL)

    def note_session_failed(self, run_id: str, message: str) -> None:
        """The service has failed the session of a Tinker run."""
        current = self._watched
        if current is not None and run_id == current.run_id:
            logger.warning("run %s: the service failed its session: %s", self.name, message)
            current.declare_fault(RULES[Kind.SESSION_FAILED], DetectedBy.POLL)

    def note_unreachable(self, how: Unreached, waited_s: float) -> None:
        """A request of ours could not reach the service, whatever it was about."""
        current = self._watched
        if current is not None:
            if how != "unserved":  # which may be met by our own requests alone
                self._note_away(current)
            self._run.rollbacks.note_unreachable(current, how, waited_s)

    def note_heard(self) -> None:
        """A request of the SDK's could not reach the service."""
        if self._run.current is not None:
            self._note_away(self._run.current)
        self._run.rollbacks.note_heard()

    @staticmethod
    def _note_away(current: AttemptScope) -> None:
        """What is open now waits for the service to come back."""
        if current.client.silent_s() is not None:
            current.progress.away()

    def note_cut(self, *, ours: bool = True) -> None:
        """A connection was closed by the service while it was idle: it may be a new one."""
        # Of the many connections of the SDK, proxies end some every day: worth a look, no warning.
        current = self._watched
        if current is not None and (ours or self._run.checkpoints.prompt.batch):
            self._run.rollbacks.note_cut(current)

    @property
    def is_urgent(self) -> bool:
        """Whether its status cannot wait for the next poll: work is overdue, or an outage open."""
        current = self._watched
        if current is None:
            return False
        silent_s = current.client.silent_s()
        usual_s = self._run.history.evidence.step_s or 0.0
        overdue = silent_s is not None and silent_s >= max(OVERDUE_S, OVERDUE_STEPS * usual_s)
        return overdue or self._run.rollbacks.sound_to < math.inf

    def check_silence(self) -> None:
        """Warn of work that makes no progress, and then declare it a fault."""
        current = self._watched
        if current is None:
            return
        client, sampling = current.client, current.sampling
        silences = [
            _Silence(
                Kind.SILENCE,
                client.silent_s() or 0.0,
                f"{counted(client.open_requests, 'request')} {is_are(client.open_requests)}",
                client.slow_s,
            ),
            _Silence(
                Kind.SAMPLING_SILENCE,
                sampling.silent_s() or 0.0,
                f"{counted(sampling.open_requests, 'sample')} {is_are(sampling.open_requests)}",
                sampling.slow_s,
            ),
        ]
        for silence in silences:
            limit_s = self._run.policy.stall_limit_s(silence.slow_s)
            warning_s = self._run.policy.stall_warning_s(limit_s)
            if warning_s is None or silence.lasts_s < warning_s:
                self._warned_of.discard((current, silence.kind))
            else:
                self._note_silence(current, silence, limit_s)

    def _note_silence(
        self, current: AttemptScope, silence: _Silence, limit_s: float | None
    ) -> None:
        kind, lasts_s = silence.kind, silence.lasts_s
        if (current, kind) not in self._warned_of:
            self._warned_of = {one for one in self._warned_of if one[0] is current}
            self._warned_of.add((current, kind))
            limit = "" if limit_s is None else f"; after {seconds(limit_s)} it counts as a fault"
            self._events.emit(
                names.EVENT_STALL_WARNING,
                self.name,
                f"{silence.of} open and none has finished for {lasts_s:.1f} s{limit}",
                {names.RUN_ID: current.run_id, names.SILENT_S: lasts_s},
            )
        if limit_s is None or lasts_s < limit_s:
            return
        if kind is Kind.SAMPLING_SILENCE and current.sampling.renew_silent(limit_s):
            return
        rule = RULES[kind]
        if kind is Kind.SILENCE:
            of_save = current.refusal.note_silence(rule)
            if of_save is None:
                return
            rule = of_save
        current.declare_fault(rule, DetectedBy.SILENCE, silent_s=lasts_s)


@contextmanager
def listening(http: ServiceHttp, runs: Mapping[str, MonitoredRun]) -> Iterator[None]:
    """Inside, have every run know what requests meet, ours and the SDK's, whatever they are about.

    Entered on the event loop.
    """
    loop = asyncio.get_running_loop()

    def unreachable(how: Unreached, waited_s: float) -> None:
        for run in runs.values():
            run.note_unreachable(how, waited_s)

    def cut(*, ours: bool = True) -> None:
        for run in runs.values():
            run.note_cut(ours=ours)

    def heard(how: Unreached) -> None:
        for run in runs.values():
            run.note_heard()
        if how == "refused":
            unreachable(how, 0.0)
        elif how in {"down", "unserved"}:
            cut(ours=False)

    def met(how: Unreached) -> None:
        # In the SDK's thread; a client that is closed late may outlive our loop.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(heard, how)

    http.unreachable, http.cut = unreachable, cut
    with sdk_requests.listening(http.endpoint.base_url, met):
        yield
