"""The engine of one entered supervisor: what happens when a child starts, is ready, or ends.

Everything here runs on the event loop's thread. An exit is handled in the very step in which the
child's code ends, without waking a supervisor task, so a crash costs the same however many other
children there are. Only what takes time has a task of its own: a backoff, a stop with a limit, a
group restart, and closing.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import anyio

from tinker_recovery.supervision.child import Child
from tinker_recovery.supervision.errors import (
    ChildNotReady,
    RestartLimitReached,
    SupervisorStopped,
    UnexpectedExit,
)
from tinker_recovery.supervision.events import Context, Outcome
from tinker_recovery.supervision.group import GroupRestart
from tinker_recovery.supervision.heartbeat import until_silent
from tinker_recovery.supervision.intensity import RestartLedger
from tinker_recovery.supervision.life import Life, Record
from tinker_recovery.supervision.reporter import Reporter
from tinker_recovery.supervision.settings import Settings
from tinker_recovery.supervision.specs import ChildSpec
from tinker_recovery.supervision.starting import until_overdue
from tinker_recovery.supervision.stopping import Stopper
from tinker_recovery.supervision.strategies import is_a_crash, is_restarted, is_shutdown_due
from tinker_recovery.supervision.tasks import Tasks


class Engine:
    """Runs the children of one supervisor, from its entry to its end.

    Args:
        settings: The supervisor's arguments.
        on_over: Called when the supervisor ends by itself, to end its body too.
    """

    def __init__(self, settings: Settings, on_over: Callable[[], None]) -> None:
        self.settings = settings
        self.records: dict[str, Record] = {}
        """By child id, in start order."""
        self.fatal: BaseException | None = None
        """The error it gave up with."""
        self.closing: asyncio.Task[None] | None = None
        self.now = settings.monotonic
        self.reporter = Reporter(settings)
        self.stopper = Stopper(self)
        self._on_over = on_over
        self._host = asyncio.current_task()
        self._tasks = Tasks(settings.name, self._broken)
        self.background = self._tasks.background
        self._ledger = RestartLedger(settings.max_restarts, settings.max_seconds)
        self._group = None if settings.strategy == "one_for_one" else GroupRestart(self)
        self._starting = False
        self._shutdown_due = False

    # Starting.

    async def start(self) -> None:
        """Start the specs in order; after an error, :meth:`closed` stops those that are up."""
        self._starting = True
        for spec in self.settings.specs:
            await self.start_first(self.add(spec))
        self._starting = False
        if self._shutdown_due:
            self._end()
        elif self._group is not None:
            self._group.resume()

    def add(self, spec: ChildSpec) -> Record:
        """Add a record for a child, whose id has to be free."""
        own = spec.max_restarts is not None
        ledger = RestartLedger(*self.settings.budget(spec)) if own else self._ledger
        record = Record(spec, self.settings.healthy_s(spec), ledger)
        self.records[spec.id] = record
        return record

    async def start_first(self, record: Record) -> Life:
        """Start a child; returns once it is ready or ignored, or raises why its start failed."""
        life = self.spawn(record)
        await self.until_up(life)
        if life.failure is not None:
            life.failure.add_note(
                f"child {life.id!r} of supervisor {self.settings.name!r} failed to start"
            )
            raise life.failure
        if self.closing is not None and not life.is_ready:
            raise self.fatal or self.stopped()
        return life

    def stopped(self) -> SupervisorStopped:
        """The error for a call made while the supervisor is stopping."""
        return SupervisorStopped(f"supervisor {self.settings.name!r} is stopping")

    def spawn(self, record: Record) -> Life:
        """Begin the next incarnation."""
        record.incarnations += 1
        life = Life(record, self)
        life.began_at = self.now()
        record.life = life
        life.task = self._tasks.of_child(life, self._live(life))
        self.reporter.started(life)
        self._tasks.soon(self._watch_start, life)
        return life

    def _watch_start(self, life: Life) -> None:
        """Most children are up by now: no task for these."""
        if not (life.is_ready or life.gone or life.stopping or self.closing is not None):
            life.watch = self.background(self._time_start(life), f"start of {life.id}")

    async def _time_start(self, life: Life) -> None:
        """Stop it if it is not ready in time."""
        overdue = await until_overdue(
            life,
            life.record.spec.start_timeout_s,
            now=self.now,
            sleep=self.settings.sleep,
            slow=functools.partial(self.reporter.slow_start, life),
        )
        life.watch = None
        if overdue is not None and not life.stopping:
            life.overdue = overdue
            self.background(self.stopper.stop(life), f"stop of {life.id}")

    async def until_up(self, life: Life) -> None:
        """Return once it is ready or gone, or :meth:`Life.settle` was called."""
        if not life.is_ready and not life.gone:
            life.waiter = self._tasks.waiter()
            await life.waiter

    async def _live(self, life: Life) -> None:
        if life.stopping:
            self.exited(life, None)
            return
        life.begun = True
        try:
            await life.record.spec.start(life)
        except GeneratorExit:
            raise  # the event loop is gone: nothing can be restarted or reported
        except BaseException as error:  # noqa: BLE001 - a supervisor handles every exit
            self.exited(life, error)
        else:
            self.exited(life, None)

    def ready(self, child: Child) -> None:
        """A child called ``started()``."""
        record = self.records.get(child.id)
        life = record and record.life
        if record is None or life is None or life is not child or life.stopping:
            return
        life.is_ready = True
        if life.watch is not None:
            life.watch.cancel()
            life.watch = None
        life.ready_at = life.last_beat_at = self.now()
        restarted, record.restarting = record.restarting, False
        record.fresh = False
        if record.spec.heartbeat_s is not None:
            life.watch = self.background(self._listen(life, record.spec.heartbeat_s), "heartbeat")
        self.reporter.ready(life, restarted=restarted)
        life.settle()

    async def _listen(self, life: Life, deadline_s: float) -> None:
        """Stop it once it has missed its heartbeat."""
        life.silence = await until_silent(life, deadline_s, now=self.now, sleep=self.settings.sleep)
        life.watch = None
        self.background(self.stopper.stop(life), f"stop of {life.id}")

    # Ends.

    def exited(self, life: Life, error: BaseException | None) -> None:
        """The code of an incarnation has ended."""
        record = life.record
        if record.life is not life:
            self.reporter.abandoned_ended(life, error)
            return
        record.life = None
        record.down_at = self.now()
        life.mark_gone()
        if error is not None and not is_a_crash(error):
            self.reporter.exited(life, "crash", error)
            self.down(record)
            self.give_up(error, record)
        elif life.stopping:
            outcome: Outcome = "shutdown" if life.overdue is None else "failed_start"
            self.reporter.exited(life, outcome, life.overdue or error)
            if error is not None and not isinstance(error, asyncio.CancelledError):
                self.reporter.crash(life, "shutdown_error", error)
            self._after_stop(life)
        elif life.is_ready:
            self._after_life(life, error)
        else:
            self._after_failed_start(life, error)

    def abandoned(self, life: Life) -> None:
        """An incarnation would not end; its exit, should it come, is ignored."""
        life.record.life = None
        life.record.down_at = self.now()
        self.reporter.exited(life, "abandoned", None)
        life.mark_gone()
        self._after_stop(life)

    def _after_stop(self, life: Life) -> None:
        record = life.record
        if self.closing is not None or record.terminated:
            self.down(record)
        elif life.overdue is not None:
            self._start_failed(life, life.overdue)
        elif life.silence is not None and not record.restarting:
            self._after_crash(life, life.silence)
        elif not record.restarting:
            self.down(record)

    def _after_life(self, life: Life, error: BaseException | None) -> None:
        record = life.record
        if record.down_at - life.ready_at >= record.healthy_s:
            record.failures = 0
        self.reporter.exited(life, "normal" if error is None else "crash", error)
        if error is not None:
            self._after_crash(life, error)
        elif is_restarted(record.spec.restart, normal=True):
            self._restart(record, UnexpectedExit(f"permanent child {life.id!r} returned"))
        else:
            self._ended(record)

    def _report_crash(self, life: Life, context: Context, error: BaseException) -> None:
        """Report a failure, unless it is the end of the whole event loop.

        ``asyncio.run`` cancels all tasks at once when an interrupt left its loop, as after a second
        Ctrl-C: the children beside their supervisor, which could not stop them before.
        """
        cancelled = isinstance(error, asyncio.CancelledError) and life.task.cancelling() > 0
        if not (cancelled and self._host is not None and self._host.cancelling() > 0):
            self.reporter.crash(life, context, error)

    def _after_crash(self, life: Life, error: BaseException) -> None:
        record = life.record
        self._report_crash(life, "child_terminated", error)
        if is_restarted(record.spec.restart, normal=False):
            self._restart(record, error)
        else:
            self._ended(record)

    def _after_failed_start(self, life: Life, error: BaseException | None) -> None:
        record = life.record
        if error is None and life.ignored:
            self.reporter.exited(life, "ignored", None)
            record.fresh = False
            self.down(record)
            return
        failure = error or ChildNotReady(
            f"child {life.id!r} returned without having called started() or ignore()"
        )
        self.reporter.exited(life, "failed_start", failure)
        self._start_failed(life, failure)

    def _start_failed(self, life: Life, failure: BaseException) -> None:
        record = life.record
        self._report_crash(life, "start_error", failure)
        if record.restarting:
            self._restart(record, failure)
        else:
            # Whoever called start_child or restart_child gets the error; it is not retried.
            life.failure = failure
            self.down(record)

    def _ended(self, record: Record) -> None:
        """A child has ended by itself and is not restarted."""
        self.down(record)
        if record.spec.significant and is_shutdown_due(
            self.settings.auto_shutdown,
            significant_left=(
                other.up for other in self.records.values() if other.spec.significant
            ),
        ):
            self._end()

    def down(self, record: Record) -> None:
        """Keep it down; a temporary, dynamic or never started child is forgotten."""
        record.stay_down()
        dynamic = self.settings.template is not None
        forgotten = record.spec.restart == "temporary" or record.fresh or dynamic
        if forgotten and self.records.get(record.spec.id) is record:
            del self.records[record.spec.id]

    # Restarts.

    def _restart(self, record: Record, cause: BaseException) -> None:
        if self.closing is not None:
            self.down(record)
            return
        if not record.ledger.spend(record.down_at):
            max_restarts, max_seconds = self.settings.budget(record.spec)
            error = RestartLimitReached(
                supervisor=self.settings.name,
                child=record.spec.id,
                max_restarts=max_restarts,
                max_seconds=max_seconds,
                cause=cause,
                own=record.ledger is not self._ledger,
            )
            record.stay_down()
            self.give_up(error, record)
            return
        record.restarting = True
        backoff = record.spec.backoff or self.settings.backoff
        delay_s = 0.0
        if backoff.initial_s:
            delay_s = backoff.delay_s(record.failures, self.settings.random())
        record.failures += 1
        self.reporter.scheduled(record, delay_s, self._restarts)
        if self._group is not None:
            self._group.crashed(record, delay_s)
            if not self._starting:
                self._group.resume()
        elif delay_s:
            record.timer = self.background(
                self._restart_later(record, delay_s), f"backoff of {record.spec.id}"
            )
        else:
            self.spawn(record)

    async def _restart_later(self, record: Record, delay_s: float) -> None:
        await self.settings.sleep(delay_s)
        record.timer = None
        self.spawn(record)

    def _restarts(self, record: Record | None) -> int:
        ledger = self._ledger if record is None else record.ledger
        return ledger.within(self.now())

    # The end.

    def give_up(self, error: BaseException, record: Record | None) -> None:
        """Stop everything and end the body with this error."""
        if self.fatal is None and (self.closing is None or not is_a_crash(error)):
            self.fatal = error
            self.reporter.escalated(record, error, self._restarts(record))
            self._end()

    def _broken(self, error: BaseException) -> None:
        self.give_up(error, None)

    def _end(self) -> None:
        if self._starting and self.fatal is None:
            self._shutdown_due = True  # as in OTP: first start the rest
            return
        self.close()
        self._on_over()

    def close(self) -> asyncio.Task[None]:
        """Begin to stop every child, once."""
        if self.closing is None:
            self.closing = self._tasks.make(self._close(), "close")
        return self.closing

    async def closed(self) -> None:
        """Stop every child within its limit, and only then re-raise a cancellation."""
        closing = self.close()
        late: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not closing.done():
                try:
                    await asyncio.wait([closing])
                except asyncio.CancelledError as error:
                    late = error  # asyncio's own, which an anyio shield does not hold back
        closing.result()
        if late is not None:
            raise late

    async def _close(self) -> None:
        # First whatever could start a child again.
        if self._group is not None:
            self._group.cancel()
        lives = []
        for record in self.records.values():
            record.stay_down()
            if record.life is not None:
                lives.append(record.life)
        if self.settings.template is not None:
            await self.stopper.stop(*lives)
        else:
            for life in reversed(lives):
                await self.stopper.stop(life)
        await self._tasks.end()
