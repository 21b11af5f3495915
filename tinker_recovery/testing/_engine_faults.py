"""Faults that strike a request when it is about to be executed."""

from __future__ import annotations

from tinker_recovery.testing._checkpoints import Checkpoints
from tinker_recovery.testing._fault_book import Entry, FaultBook
from tinker_recovery.testing._faults import FaultRule
from tinker_recovery.testing._runs import Promise, ServiceRun

_FATAL = frozenset({"poison", "fail", "hang", "gone", "fail_session"})
"""Faults that end a request; the others change its run, or the weights it loads."""


async def find_faults(
    book: FaultBook, promise: Promise, run: ServiceRun | None = None
) -> tuple[FaultRule | None, list[FaultRule]]:
    """The fault that ends a request, if any, and those that take effect before it is executed.

    Waits while a ``pause`` lasts. ``run`` is None for a request that makes a run.
    """
    struck_by: list[Entry] = []
    effects: list[FaultRule] = []
    while True:
        strike = book.strike(
            "engine", promise.request, promise.run_id, promise.step, but_not=struck_by
        )
        if strike is None:
            return None, effects
        struck_by.append(strike.entry)
        rule = strike.rule
        if rule.action in _FATAL:
            return rule, effects
        if rule.action == "pause":
            waits = promise if run is None else run
            waits.set_queue_state(rule.queue_state)
            await book.wait_over(strike)
            waits.set_queue_state("active")
        else:
            effects.append(rule)


def apply_effect(run: ServiceRun, rule: FaultRule, checkpoints: Checkpoints) -> None:
    """Do to a run what a fault does that does not end its request."""
    if rule.action == "rollback":
        run.model = checkpoints.rolled_back_model(run.facts)
    elif rule.action == "nan_loss" and run.model is not None:
        run.model.report_instead(float(rule.loss), sticky=rule.sticky)
