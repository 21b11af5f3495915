"""The service's checkpoints: names, expiry, and the models made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tinker_recovery.testing.damage import Damage, damaged
from tinker_recovery.testing.model import BigramLora
from tinker_recovery.testing.runs import ServiceError
from tinker_recovery.testing.store import KINDS, DamagedCheckpoint, Store

Facts = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """One checkpoint as the service has it, for tests to look at.

    Attributes:
        path: Its ``tinker://`` path.
        steps: Optimizer steps in it.
        size_bytes: Its size.
        expires: Seconds since the epoch at which it goes; None for never.
        public: Whether it was published.
        user_metadata: What was stored with it.
    """

    path: str
    steps: int
    size_bytes: int
    expires: float | None
    public: bool
    user_metadata: dict[str, str] | None


class Checkpoints:
    """Every checkpoint there is.

    Args:
        store: Where they are.
        wall: Seconds since the epoch, for expiry.
        lenient: Whether loads do not look at checksums.
    """

    def __init__(self, store: Store, wall: Callable[[], float], *, lenient: bool = False) -> None:
        self._store = store
        self._wall = wall
        self._lenient = lenient

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
        facts = self._facts(run_id, "weights", name, ttl_s)
        facts |= {"steps": model.steps, "user_metadata": user_metadata}
        self._store.save_checkpoint(run_id, name, model.tensors(), facts)
        return str(facts["path"])

    def export(
        self, run_id: str, name: str, model: BigramLora, *, ttl_s: float | None, config: str
    ) -> tuple[str, int]:
        """Store a model's weights for others to read; returns the path and the size in bytes.

        Args:
            run_id: Its run.
            name: The export's name.
            model: Its weights are stored, its optimizer is not.
            ttl_s: Seconds until it expires; None for never.
            config: What lies beside the weights, as JSON.
        """
        facts = self._facts(run_id, "external_weights", name, ttl_s)
        facts |= {"steps": model.steps, "user_metadata": None, "config": config}
        size = self._store.save_checkpoint(run_id, name, model.weights, facts)
        return str(facts["path"]), size

    def _facts(self, run_id: str, kind: str, name: str, ttl_s: float | None) -> Facts:
        return {
            "run_id": run_id,
            "kind": kind,
            "name": name,
            "path": f"tinker://{run_id}/{kind}/{name}",
            "time": datetime.fromtimestamp(self._wall(), UTC).isoformat(),
            "expires": None if ttl_s is None else self._wall() + ttl_s,
            "public": False,
        }

    def of(self, run_id: str, kind: str = "weights") -> list[Facts]:
        """A run's checkpoints of one kind, oldest first; expired ones are deleted on the way."""
        found = []
        for facts in self._store.checkpoints(run_id, kind):
            if facts["expires"] is not None and facts["expires"] <= self._wall():
                self._store.delete_checkpoint(run_id, facts["name"], kind)
            else:
                found.append(facts)
        return found

    def every(self, run_id: str) -> list[Facts]:
        """A run's checkpoints of every kind, oldest first."""
        found = [facts for kind in KINDS for facts in self.of(run_id, kind)]
        return sorted(found, key=lambda facts: int(facts["serial"]))

    def stored(self, run_id: str) -> list[StoredCheckpoint]:
        """The training checkpoints of a run, for tests, oldest first."""
        names = StoredCheckpoint.__slots__
        return [
            StoredCheckpoint(**{name: facts[name] for name in names})
            for facts in self.of(run_id)
            if facts["path"].startswith(f"tinker://{run_id}/weights/")
        ]

    def find(self, path: str) -> Facts:
        """One checkpoint by its path.

        Raises:
            ServiceError: 404 if there is none.
        """
        run_id = path.removeprefix("tinker://").partition("/")[0]
        for facts in self.every(run_id):
            if facts["path"] == path:
                return facts
        raise ServiceError(404, f"no checkpoint {path!r}")

    def restore(self, facts: Facts, model: BigramLora, *, optimizer: bool) -> None:
        """Put a checkpoint's contents into a model.

        Raises:
            DamagedCheckpoint: They are missing, or not what was saved.
        """
        tensors = self._store.tensors(facts["run_id"], facts, lenient=self._lenient)
        try:
            model.restore(tensors, optimizer=optimizer)
        except (KeyError, ValueError) as error:
            raise DamagedCheckpoint(f"its weights do not fit: {error!r}") from error

    def content(self, facts: Facts) -> bytes:
        """The bytes of a checkpoint's tensors, as they are.

        Raises:
            DamagedCheckpoint: They are missing.
        """
        return self._store.content(facts["run_id"], facts)

    def damage(self, path: str, how: Damage) -> None:
        """Let something happen to a stored checkpoint, of which the service knows nothing.

        Raises:
            ServiceError: 404 if there is none.
            ValueError: There is no such damage.
        """
        facts = self.find(path)
        file = self._store.tensors_file(facts["run_id"], facts)
        if how == "no_metadata":
            self.change(path, user_metadata=None)
        elif how == "deleted":
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(damaged(self.content(facts), how))

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
        self._store.delete_checkpoint(facts["run_id"], facts["name"], facts["kind"])
