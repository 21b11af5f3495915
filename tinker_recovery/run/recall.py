"""Recalling: what an attempt made for a step is given back to the attempt that replays the step.

What is given back was made for the same step, under the same key, of the same weights: their trails
are equal (``checkpoints.trail``), and everything that the weights were made of is known to have
succeeded. Whatever is not known for certain is made again.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from tinker_recovery.checkpoints.trail import Trail, digest_of, trail_at_start
from tinker_recovery.checkpoints.values import decode_value, encode_value
from tinker_recovery.errors import StaleAttempt, UsageError
from tinker_recovery.journal.recalled import Kept, Recalled, folder_beside
from tinker_recovery.recovery.resume import trusted_limit

if TYPE_CHECKING:
    from tinker_recovery.run.open import OpenedRun
    from tinker_recovery.run.scope import AttemptScope
    from tinker_recovery.run.supervised import SupervisedRun

Make = Callable[[], Any | Awaitable[Any]]

FALL_BACKS = 2
"""How many of the newest confirmed checkpoints a recovery may be expected to come back to."""


class RunRecall:
    """What a run keeps to be recalled, over its attempts and processes.

    Args:
        opened: The run as it was opened.
        limit: Most bytes of values.
    """

    def __init__(self, opened: OpenedRun, *, limit: int) -> None:
        record = opened.record
        folder = None
        # Of a run that no other process resumes, nothing is left on disk.
        if record.given_name is not None and record.path is not None:
            folder = folder_beside(record.path, record.lineage)
        self.values = Recalled(folder, limit=limit)
        self.durable = folder is not None
        """Whether a later process finds them."""
        self.used = False
        """Whether an attempt of this process has asked for something."""
        stored = record.stored
        self._earlier = {
            each.attempt: trusted_limit(each, (), corrupted=False)
            for each in (() if stored is None else stored.attempts)
        }

    def trusted_to(self, run: SupervisedRun, attempt: str) -> float:
        """The newest step of an attempt whose weights are known to be what its trail says."""
        here = run.attempts.find(attempt) is not None
        limit = math.inf if here else self._earlier.get(attempt, -math.inf)
        return min(limit, run.checkpoints.trusted_to(attempt))


class AttemptRecall:
    """What one attempt recalls, and the trail of its weights."""

    def __init__(self, scope: AttemptScope) -> None:
        self._scope = scope
        self._run = scope.run
        self._kept = scope.run.history.recall
        checkpoint, exact = scope.checkpoint, scope.run.policy.restore_optimizer
        self.trail = Trail(
            trail_at_start(
                scope.segment,
                checkpoint,
                exact=exact,
                began_at=None if checkpoint is None else _began_at(scope.run, checkpoint.attempt),
            ),
            step=scope.start_step,
            follows=self._kept.used or (checkpoint is not None and checkpoint.trail is not None),
        )
        self._making: dict[str, asyncio.Future[Any]] = {}

    async def get(self, key: str, make: Make) -> Any:
        """See :meth:`Attempt.recall`."""
        if not key or type(key) is not str:
            raise UsageError(f"recall(key={key!r}): it has to be a string that is not empty")
        self._check_live()
        self._kept.used = True
        self.trail.follow()
        step, digest = self.trail.position()
        place = digest_of(digest, str(step), key)
        while (making := self._making.get(place)) is not None:
            await asyncio.wait([making])
            if not making.cancelled():
                return making.result()
        making = self._making[place] = asyncio.get_running_loop().create_future()
        try:
            value = await self._found_or_made(place, step, key, make)
            making.set_result(value)
        finally:
            # Those who wait ask again, and one of them makes it.
            making.cancel()
            del self._making[place]
        return value

    async def _found_or_made(self, place: str, step: int, key: str, make: Make) -> Any:
        kept = await anyio.to_thread.run_sync(self._kept.values.get, place)
        if kept is not None and kept.made_to <= self._kept.trusted_to(self._run, kept.attempt):
            try:
                return await anyio.to_thread.run_sync(decode_value, kept.text)
            except ValueError:
                pass  # of another version of the SDK
        made = make()
        value = await made if inspect.isawaitable(made) else made
        await self._keep(place, step, key, value)
        return value

    async def _keep(self, place: str, step: int, key: str, value: object) -> None:
        scope, values = self._scope, self._kept.values
        where = f"what recall({key!r}) keeps"
        text = await anyio.to_thread.run_sync(encode_value, value, where)
        kept = Kept(scope.id, step, scope.client.begun, text)
        if not await anyio.to_thread.run_sync(values.put, place, kept):
            return
        if (floor := self._floor()) is not None:
            await anyio.to_thread.run_sync(values.drop_below, floor)
        if self._kept.durable:
            # A later process gives back what this one knew to be of sound weights.
            await self._run.journal.position_is_written(scope)

    def _floor(self) -> int | None:
        """The step below which no recovery comes back; None if that is not known."""
        if self._run.policy.checkpoint_strategy != "latest":
            return None
        return floor_of([*self._run.checkpoints.settled_on(self._run.segments)])

    def _check_live(self) -> None:
        scope = self._scope
        if scope.closed or scope.left.is_set() or (scope.faulty and self._run.policy.enabled):
            raise StaleAttempt(
                f"recall() of attempt {scope.number}, which is over: ask the newest attempt"
            )


def floor_of(confirmed: Sequence[int]) -> int | None:
    """The step below which no recovery comes back, by the steps of the confirmed checkpoints."""
    newest = sorted(set(confirmed), reverse=True)[:FALL_BACKS]
    return newest[-1] if len(newest) == FALL_BACKS else None


def _began_at(run: SupervisedRun, attempt: str) -> int | None:
    return next((each.start_step for each in run.segments if each.attempt == attempt), None)
