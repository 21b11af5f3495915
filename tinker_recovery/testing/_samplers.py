"""The service's samplers, which the SDK calls sampling sessions."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tinker_recovery.testing._checkpoints import Checkpoints
from tinker_recovery.testing._model import BigramLora
from tinker_recovery.testing._runs import Reply, RequestError, ServiceError
from tinker_recovery.testing._sampling import Weights
from tinker_recovery.testing._store import DamagedCheckpoint

CLIENT_SEQ_IDS = 1_000_000_000
"""The clients of a sampler number their requests from a multiple of this, each from its own."""


@dataclass(slots=True)
class Finished:
    """The requests of one client of a sampler that have finished, in that order.

    Attributes:
        completions: As ``tinker.types.FutureCompletion``.
    """

    completions: list[dict[str, object]] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, request_id: str, reply: Reply | None) -> None:
        """One has finished, or failed."""
        if isinstance(reply, bytes):
            size = {"response_payload_uncompressed_size": len(reply)}
            self.completions.append({"state": "finished", "request_id": request_id, **size})
        else:
            self.completions.append({"state": "failed", "request_id": request_id})
        self._more.set()

    async def wait_beyond(self, cursor: int, limit_s: float) -> None:
        """Return once there are more than ``cursor``, or after ``limit_s`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while len(self.completions) <= cursor:
                    self._more.clear()
                    await self._more.wait()


@dataclass(slots=True)
class Sampler:
    """One sampler.

    Attributes:
        sampler_id: Its id, which begins with that of its session.
        base_model: The base model's name.
        model_path: The checkpoint that it samples from, if any.
        weights: What it samples from.
        clients: How many clients have joined it besides the first.
        turns: How many requests without a seed it has had, by prompt.
    """

    sampler_id: str
    base_model: str
    model_path: str | None
    weights: Weights
    clients: int = 0
    turns: Counter[bytes] = field(default_factory=Counter)
    _finished: dict[int, Finished] = field(default_factory=dict)

    def finished(self, client: int) -> Finished:
        """What has finished of one client, 0 for the first."""
        return self._finished.setdefault(client, Finished())


class Samplers:
    """All samplers; they do not outlive a restart of the service.

    Args:
        checkpoints: Where weights are found by their path.
        facts_of: The stored record of a run, by its id.
    """

    def __init__(
        self, checkpoints: Checkpoints, facts_of: Callable[[str], dict[str, object]]
    ) -> None:
        self._checkpoints = checkpoints
        self._facts_of = facts_of
        self._samplers: dict[str, Sampler] = {}
        self._inflight: dict[str, Weights] = {}

    def get(self, sampler_id: str) -> Sampler:
        """A sampler; raises ServiceError 404 if it, or the checkpoint it samples from, is gone."""
        if sampler_id not in self._samplers:
            raise ServiceError(404, f"no sampler {sampler_id!r}")
        sampler = self._samplers[sampler_id]
        if sampler.model_path is not None:
            self._checkpoints.find(sampler.model_path)
        return sampler

    def ids(self, session: str = "") -> list[str]:
        """The ids of the samplers of a session, or of all, oldest first."""
        return [one for one in self._samplers if not session or one.startswith(f"{session}:")]

    def expire(self, sampler_id: str) -> None:
        """Remove a sampler; raises ServiceError 404 if there is none."""
        self.get(sampler_id)
        del self._samplers[sampler_id]

    def clear(self) -> None:
        """Remove all of them."""
        self._samplers.clear()
        self._inflight.clear()

    def create(
        self, session: str, seq_id: int, *, model_path: str | None, base_model: str | None
    ) -> str:
        """Make a sampler of a checkpoint or, without a path, of a base model; returns its id.

        Raises:
            ServiceError: 404 if there is no such checkpoint, 400 if it cannot be read, is an
                export, or neither a path nor a base model is given.
        """
        sampler_id = f"{session}:sample:{seq_id}"
        if sampler_id in self._samplers:
            return sampler_id
        if model_path is not None:
            facts = self._checkpoints.find(model_path)
            run = self._facts_of(facts["run_id"])
            base_model = str(run["base_model"])
            try:
                model = self._checkpoints.model_to_sample(facts, run)
            except DamagedCheckpoint as error:
                raise ServiceError(400, f"cannot load {model_path}: {error}") from error
        elif base_model is not None:
            model = BigramLora(base_model, rank=1, seed=0)  # B is zero: the base alone
        else:
            raise ServiceError(400, "model_path or base_model has to be given")
        self._samplers[sampler_id] = Sampler(sampler_id, base_model, model_path, Weights.of(model))
        return sampler_id

    def snapshot(self, run_id: str, sampler_id: str, model: BigramLora, *, inflight: bool) -> None:
        """Make a sampler of a run's weights as they are; no checkpoint is listed.

        With ``inflight``, all such samplers of the run sample from the newest of them.
        """
        weights = Weights.of(model)
        if inflight:
            shared = self._inflight.setdefault(run_id, weights)
            shared.table, shared.steps = weights.table, weights.steps
            weights = shared
        base_model = self._facts_of(run_id)["base_model"]
        if sampler_id in self._samplers:
            raise RequestError(f"a sampler {sampler_id!r} exists")
        self._samplers[sampler_id] = Sampler(sampler_id, str(base_model), None, weights)
