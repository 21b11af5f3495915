"""The end of a body: what is still open is waited for, and the last step saved."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import anyio

from tinker_recovery.service.refusals import in_words
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.text import counted, is_are

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope

logger = logging.getLogger(names.SCOPE)

DRAIN_WARNING_S = 30.0
"""After this long it is said that requests are still open, and once more each time."""


async def finish_open(scope: AttemptScope) -> None:
    """Wait for what is still open, with a last save if the schedule wants one; raises a failure."""
    at_end = functools.partial(scope.saver.due, end=True)
    # Once more after the first wait: a save still in flight holds back the one of the end.
    for _ in range(2):
        if scope.fault is None and not scope.refusal.at_end:
            scope.client.save(at_end)
        while scope.client.open_requests and not scope.refusal.at_end:
            with anyio.move_on_after(DRAIN_WARNING_S) as scope.refusal.waiting:
                await _drain(scope)
                break
            if not scope.refusal.at_end:
                logger.warning(
                    "run %s: the loop has ended, and %s %s still open at the service",
                    scope.run.name,
                    counted(scope.client.open_requests, "request"),
                    is_are(scope.client.open_requests),
                )
    # A failure is posted before its request counts as ended, so none is missed here.
    scope.run.mailbox.deliver()
    if scope.looked_into_save is not None:
        with anyio.move_on_after(scope.run.policy.create_timeout_s):
            await scope.looked_into_save.wait()
    if scope.fault is None and scope.run.policy.enabled:
        failed = list(scope.client.failed_saves)
        if failed and await scope.run.is_corrupted():
            raise failed[-1]
        unseen = scope.client.errors.unseen
        if unseen:
            # It was not awaited, and the steps behind it ran without it.
            raise unseen[0]
    if scope.refusal.at_end:
        # What fails from here on is behind the save, and nothing of the loop's.
        scope.finished = True
    _say_unsaved(scope)


def _say_unsaved(scope: AttemptScope) -> None:
    """A loop that has ended well, with saves that the service does not store, has lost its end."""
    _, stored = scope.saver.failing
    if scope.fault is None and scope.run.history.refused_saves and stored < scope.client.step:
        logger.warning(
            "run %s has come to its end, and its steps %d to %d are in no checkpoint, as the "
            "service has stored none since: the weights are lost with this run, unless the loop "
            "has saved them itself",
            scope.run.name,
            stored + 1,
            scope.client.step,
        )


async def _drain(scope: AttemptScope) -> None:
    """Wait for what is open, up to a refused save of the last step.

    Nothing behind that is the loop's, and it may never be answered.
    """
    try:
        await scope.client.drain()
    except Exception as error:
        scope.run.mailbox.deliver()
        if error is not scope.refusal.error or not scope.refusal.at_end:
            raise
        if scope.run.policy.enabled and await scope.run.is_corrupted():
            raise


async def save_before_leaving(scope: AttemptScope) -> None:
    """Save the last step if a signal has asked the process to stop, within the policy's limit.

    Does nothing if none has, or if the attempt is in no state to be saved. Never raises.
    """
    limit_s = scope.run.policy.checkpoints.save_on_stop_s
    if limit_s is None or not scope.run.signals.requested or scope.closed:
        return
    scope.ending = True
    with anyio.CancelScope(shield=True), anyio.move_on_after(limit_s) as waiting:
        try:
            # Once more after the first wait: a save in flight holds this one back.
            for _ in range(2):
                if scope.fault is not None or scope.client.failed:
                    return
                scope.client.save(scope.saver.last)
                if scope.saver.awaits_state and scope.saver.may_save_at(scope.client.step):
                    logger.warning(
                        "run %s: stopping; step %d is not saved, because the loop had not set "
                        "loop_state for it yet: set it between forward_backward and "
                        "optim_step, and the last step is saved on the way out",
                        scope.run.name,
                        scope.client.step,
                    )
                    return
                if scope.client.open_requests:
                    logger.warning(
                        "run %s: stopping; step %d is saved first, for %g s at most. A second "
                        "Ctrl-C or SIGTERM does not wait for it",
                        scope.run.name,
                        scope.client.step,
                        limit_s,
                    )
                await scope.client.drain()
                scope.run.mailbox.deliver()
        except Exception as error:  # noqa: BLE001 - whatever the service answers, the process was asked to stop
            why = in_words(error)
            logger.warning("run %s: its last step is not saved: %s", scope.run.name, why)
    if waiting.cancelled_caught:
        logger.warning(
            "run %s: step %d was not saved within %g s",
            scope.run.name,
            scope.client.step,
            limit_s,
        )
