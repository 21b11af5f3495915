"""The service's checkpoints: names, expiry, and the models made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tinker_recovery.testing.model import BigramLora
from tinker_recovery.testing.runs import ServiceError
from tinker_recovery.testing.store import DamagedCheckpoint, Store

Facts = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class Checkpoints:
    """Every checkpoint there is.

    Args:
        store: Where they are.
        wall: Seconds since the epoch, for expiry.
    """

    def __init__(self, store: Store, wall: Callable[[], float]) -> None:
        self._store = store
        self._wall = wall

    @staticmethod
    def check_name(name: str) -> None:
        """Let pass only what can be a name.

        Raises:
            ServiceError: 400 for other characters than allowed.
        """
        if not _NAME.fullmatch(name):
            raise ServiceError(400, f"path={name!r} is not allowed: letters, digits, '.', '_', '-'")

    def save(
        self,
        run_id: str,
        name: str,
        model: BigramLora,
        *,
        ttl_s: float | None,
        user_metadata: dict[str, str] | None,
    ) -> str:
        """Store a model, in the place of one of that name; returns its path."""
        path = f"tinker://{run_id}/weights/{name}"
        facts = {
            "run_id": run_id,
            "name": name,
            "path": path,
            "steps": model.steps,
            "time": datetime.fromtimestamp(self._wall(), UTC).isoformat(),
            "user_metadata": user_metadata,
            "expires": None if ttl_s is None else self._wall() + ttl_s,
            "public": False,
        }
        self._store.save_checkpoint(run_id, name, model.tensors(), facts)
        return path

    def of(self, run_id: str) -> list[Facts]:
        """The checkpoints of a run, oldest first; expired ones are deleted on the way."""
        found = []
        for facts in self._store.checkpoints(run_id):
            if facts["expires"] is not None and facts["expires"] <= self._wall():
                self._store.delete_checkpoint(run_id, facts["name"])
            else:
                found.append(facts)
        return found

    def find(self, path: str) -> Facts:
        """One checkpoint by its path.

        Raises:
            ServiceError: 404 if there is none.
        """
        run_id, _, rest = path.removeprefix("tinker://").partition("/")
        for facts in self.of(run_id):
            if f"weights/{facts['name']}" == rest:
                return facts
        raise ServiceError(404, f"no checkpoint {path!r}")

    def restore(self, facts: Facts, model: BigramLora, *, optimizer: bool) -> None:
        """Put a checkpoint's contents into a model.

        Raises:
            DamagedCheckpoint: They are missing, or not what was saved.
        """
        model.restore(self._store.tensors(facts["run_id"], facts), optimizer=optimizer)

    def last(self, run_id: str, make: Callable[[], BigramLora]) -> BigramLora | None:
        """A model of the run's newest checkpoint that can be read, if there is one."""
        for facts in reversed(self.of(run_id)):
            model = make()
            try:
                self.restore(facts, model, optimizer=True)
            except DamagedCheckpoint:
                continue
            return model
        return None

    def change(self, path: str, **changes: object) -> None:
        """Replace facts of a checkpoint."""
        facts = {**self.find(path), **changes}
        self._store.save_facts(facts["run_id"], facts["name"], facts)

    def set_ttl(self, path: str, ttl_s: float | None) -> None:
        """Let a checkpoint expire so many seconds from now, or never."""
        self.change(path, expires=None if ttl_s is None else self._wall() + ttl_s)

    def delete(self, path: str) -> None:
        """Delete a checkpoint."""
        facts = self.find(path)
        self._store.delete_checkpoint(facts["run_id"], facts["name"])
