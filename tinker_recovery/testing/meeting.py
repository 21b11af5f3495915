"""Where a request about to be executed meets the faults meant for it."""

from __future__ import annotations

from tinker_recovery.testing.book import Entry, FaultBook
from tinker_recovery.testing.checkpoints import Checkpoints
from tinker_recovery.testing.faults import FaultRule
from tinker_recovery.testing.making import rolled_back
from tinker_recovery.testing.runs import Promise, Run

_ENDS_IT = frozenset({"poison", "fail", "hang", "gone", "fail_session"})
"""Faults that decide a request's end; the others change what it finds, and it goes on."""


async def meet(
    book: FaultBook, promise: Promise, run: Run | None = None
) -> tuple[FaultRule | None, list[FaultRule]]:
    """What strikes a request: the fault that ends it, and those that change what it finds.

    Args:
        book: What goes wrong.
        promise: The request.
        run: Its run, if it does not make one.
    """
    met: list[Entry] = []
    effects: list[FaultRule] = []
    while True:
        strike = book.strike("engine", promise.request, promise.run_id, promise.step, but_not=met)
        if strike is None:
            return None, effects
        met.append(strike.entry)
        rule = strike.rule
        if rule.action in _ENDS_IT:
            return rule, effects
        if rule.action == "pause":
            _hold(promise, run, rule.queue_state)
            await book.over(strike)
            _hold(promise, run, "active")
        else:
            effects.append(rule)


def _hold(promise: Promise, run: Run | None, queue_state: str) -> None:
    promise.wait_because(queue_state)
    if run is not None:
        run.hold(queue_state)


def change(run: Run, rule: FaultRule, checkpoints: Checkpoints) -> None:
    """Do to a run what a fault does that does not end its request."""
    if rule.action == "rollback":
        run.model = rolled_back(run.facts, checkpoints)
    elif rule.action == "nan_loss" and run.model is not None:
        run.model.tell_instead(float(rule.loss), sticky=rule.sticky)
