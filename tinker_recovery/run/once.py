"""What is made once for a logical run, however many attempts and processes it takes."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import anyio
import tinker

from tinker_recovery.checkpoints.metadata import check_plain
from tinker_recovery.errors import JournalError, UsageError
from tinker_recovery.service.sampler import SupervisedSampler, SupervisedSamplerFuture
from tinker_recovery.telemetry import names

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope
    from tinker_recovery.run.supervised import SupervisedRun

logger = logging.getLogger(names.SCOPE)

Make = Callable[[], Any | Awaitable[Any]]

_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class _Made:
    """What was made: a value, or where a sampling client samples from."""

    value: Any = None
    path: str | None = None
    base_model: str | None = None

    @property
    def is_sampler(self) -> bool:
        return self.path is not None or self.base_model is not None

    def encode(self) -> str:
        return json.dumps({key: each for key, each in asdict(self).items() if each is not None})

    @classmethod
    def decode(cls, text: str) -> _Made:
        return cls(**json.loads(text))


class Once:
    """What a run has made once.

    Kept in this process and, under the run's lineage, in the journal. Sampler weights are found at
    the service too, by their name, so that a process without that journal has them.
    """

    def __init__(self) -> None:
        self._made: dict[str, _Made] = {}
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def get(self, attempt: AttemptScope, key: str, make: Make) -> Any:
        """See :meth:`Attempt.once`."""
        if not key:
            raise UsageError(f"once(key={key!r}): it has to be a string that is not empty")
        async with self._locks[key]:
            if key in attempt.made_once:
                return attempt.made_once[key]
            made = await self._known(attempt.run, key)
            if made is None:
                made = await self._keep(attempt.run, key, await _make(attempt, key, make))
            self._made[key] = made
            result = await _sampler_of(attempt, made) if made.is_sampler else made.value
            attempt.made_once[key] = result
            return result

    async def _known(self, run: SupervisedRun, key: str) -> _Made | None:
        if key in self._made:
            return self._made[key]
        noted = await run.collaborators.notebook.made_once(run.lineage, key)
        if noted is not None:
            return _Made.decode(noted)
        return None if run.snapshot is None else await _at_the_service(run, key)

    async def _keep(self, run: SupervisedRun, key: str, made: _Made) -> _Made:
        """Note it; returns what is noted, should another task have been quicker."""
        notebook = run.collaborators.notebook
        try:
            await notebook.note_made_once(run.lineage, key, made.encode())
            noted = await notebook.made_once(run.lineage, key)
        except JournalError as error:
            logger.warning(
                "run %s: a later process will not find once(%r): %s", run.name, key, error
            )
            return made
        return made if noted is None else _Made.decode(noted)


async def _at_the_service(run: SupervisedRun, key: str) -> _Made | None:
    """The sampler weights that an earlier process saved under this key."""
    start = f"/sampler_weights/{_prefix(key)}"
    for segment in run.segments:
        listed = await run.collaborators.reader.checkpoints(segment.run_id)
        saved = [each for each in listed if start in each.tinker_path]
        if saved:
            return _Made(path=min(saved, key=lambda each: each.time).tinker_path)
    return None


async def _make(attempt: AttemptScope, key: str, make: Make) -> _Made:
    result = make()
    if inspect.isawaitable(result):
        result = await result
    if isinstance(result, SupervisedSamplerFuture):
        result = await result
    if isinstance(result, SupervisedSampler):
        return await _saved(attempt, key, result)
    if isinstance(result, tinker.SamplingClient):
        raise UsageError(
            f"once({key!r}): make() returned a sampling client that the attempt did not make, so "
            "where it samples from is not known: make it by attempt.client or attempt.service"
        )
    check_plain(result, f"what once({key!r}) keeps")
    return _Made(value=result)


async def _saved(attempt: AttemptScope, key: str, sampler: SupervisedSampler) -> _Made:
    """Where a sampling client samples from, saved if that is nowhere but in the client."""
    source, client = sampler.source, attempt.client
    if source.weights is None:
        return _Made(path=source.path, base_model=source.base_model)
    if source.weights != client.weights:
        raise UsageError(
            f"once({key!r}): make() returned a sampling client of step {source.step}, and the "
            f"training is at step {client.step}: ask before the next optim_step"
        )
    if attempt.start_step > attempt.run.start_step and client.step == attempt.start_step:
        raise UsageError(
            f"once({key!r}) would be made of the weights of step {client.step}, which an attempt "
            "before this one has trained, and what that one made is neither in the journal nor at "
            "the service. Make it of a checkpoint or a base model instead, by "
            "attempt.service.create_sampling_client()"
        )
    training: tinker.TrainingClient = client
    saved = await training.save_weights_for_sampler(f"{_prefix(key)}{secrets.token_hex(4)}")
    return _Made(path=saved.path)


def _prefix(key: str) -> str:
    """How the names of the sampler weights of a key begin; no key's begins with another's."""
    return f"once-{_NAME.sub('-', key)[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}-"


async def _sampler_of(attempt: AttemptScope, made: _Made) -> Any:
    training: tinker.TrainingClient = attempt.client
    if made.path is not None:
        return await training.create_sampling_client(made.path)
    return await attempt.service.create_sampling_client(base_model=made.base_model)
