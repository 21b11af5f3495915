"""The service's checkpoints: names, expiry, and the models made from them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tinker_recovery.testing._damage import Damage, damaged
from tinker_recovery.testing._model import BigramLora, Noise
from tinker_recovery.testing._peft import peft_tensors
from tinker_recovery.testing._runs import ServiceError
from tinker_recovery.testing._store import KINDS, DamagedCheckpoint, Store

Facts = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """One checkpoint as the service has it.

    Attributes:
        path: Its ``tinker://`` path.
        steps: Optimizer steps in it.
        size_bytes: Size of its files.
        expires: Seconds since the epoch at which it expires; None for never.
        public: Whether it was published.
        user_metadata: The metadata stored with it.
    """

    path: str
    steps: int
    size_bytes: int
    expires: float | None
    public: bool
    user_metadata: dict[str, str] | None


class Checkpoints:
    """All checkpoints of the service.

    Args:
        store: Where they are kept.
        wall: Seconds since the epoch.
        lenient: Whether loads ignore checksums.
        noise: What the models made from them answer and train with.
        clock: Seconds, for the delay.
        listing_delay_s: Seconds until a new one is listed.
        note: Called with what was done to which path.
    """

    def __init__(
        self,
        store: Store,
        wall: Callable[[], float],
        *,
        lenient: bool = False,
        noise: Noise | None = None,
        clock: Callable[[], float] = time.monotonic,
        listing_delay_s: float = 0.0,
        note: Callable[[str, str], None] = lambda _event, _path: None,
    ) -> None:
        self._store = store
        self._wall = wall
        self._lenient = lenient
        self._noise = noise
        self._clock = clock
        self._listing_delay_s = listing_delay_s
        self._note = note
        self._listed_from: dict[str, float] = {}

    @staticmethod
    def check_name(name: str) -> None:
        """Raise ServiceError 400 unless it can be a name."""
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
        kind: Literal["weights", "sampler_weights"] = "weights",
    ) -> str:
        """Store a model, replacing a checkpoint of that name; returns its path.

        For samplers it is stored without its optimizer.
        """
        facts = self._facts(run_id, kind, name, ttl_s)
        facts |= {"steps": model.steps, "user_metadata": user_metadata}
        tensors = model.tensors()
        if kind == "sampler_weights":
            tensors = {**model.weights, "counters": tensors["counters"]}
        self._store.save_checkpoint(run_id, name, tensors, facts)
        self._list_later(facts)
        return str(facts["path"])

    def export(
        self, run_id: str, name: str, model: BigramLora, *, ttl_s: float | None, config: str
    ) -> tuple[str, int]:
        """Store a model's weights, as PEFT names them, and a JSON file for download.

        Returns its path, and the size of the weights in bytes.
        """
        facts = self._facts(run_id, "external_weights", name, ttl_s)
        facts |= {"steps": model.steps, "user_metadata": None, "config": config}
        size = self._store.save_checkpoint(run_id, name, peft_tensors(model.weights), facts)
        self._list_later(facts)
        return str(facts["path"]), size

    def copy(self, facts: Facts, run_id: str, *, ttl_s: float | None) -> str:
        """Copy a checkpoint to another run; returns its path.

        Raises:
            DamagedCheckpoint: It cannot be read.
        """
        tensors = self._store.tensors(facts["run_id"], facts, lenient=True)
        name, kind = facts["name"], facts["kind"]
        kept = {key: facts[key] for key in ("steps", "user_metadata")}
        copied = {**self._facts(run_id, kind, name, ttl_s), **kept}
        self._note("checkpoint_read", facts["path"])
        self._store.save_checkpoint(run_id, name, tensors, copied)
        self._list_later(copied)
        return str(copied["path"])

    def _list_later(self, facts: Facts) -> None:
        self._note("checkpoint_create", facts["path"])
        # One that replaces another of its name is listed as that was.
        self._listed_from.setdefault(facts["path"], self._clock() + self._listing_delay_s)

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
        """A run's checkpoints of one kind, oldest first; deletes those that have expired."""
        found = []
        for facts in self._store.checkpoints(run_id, kind):
            if facts["expires"] is not None and facts["expires"] <= self._wall():
                self._store.delete_checkpoint(run_id, facts["name"], kind)
            else:
                found.append(facts)
        return found

    def name_of(self, run_id: str) -> str:
        """What tinker_recovery's user calls a run, by the metadata of its checkpoints; or empty."""
        for facts in self._store.checkpoints(run_id, "weights"):
            metadata = facts["user_metadata"] or {}
            name = str(metadata.get("tinker_recovery.run_name", ""))
            # A run without a name of its own has its lineage there.
            if name and name != metadata.get("tinker_recovery.lineage"):
                return name
        return ""

    def every(self, run_id: str) -> list[Facts]:
        """A run's checkpoints of every kind, oldest first."""
        found = [facts for kind in KINDS for facts in self.of(run_id, kind)]
        return sorted(found, key=lambda facts: int(facts["serial"]))

    def listed(self, run_id: str) -> list[Facts]:
        """Those of a run's checkpoints, of every kind, that lists show; oldest first."""
        now = self._clock()
        every = self.every(run_id)
        return [facts for facts in every if self._listed_from.get(facts["path"], now) <= now]

    def stored(self, run_id: str) -> list[StoredCheckpoint]:
        """The training checkpoints of a run, oldest first."""
        names = StoredCheckpoint.__slots__
        return [
            StoredCheckpoint(**{name: facts[name] for name in names}) for facts in self.of(run_id)
        ]

    def find(self, path: str) -> Facts:
        """One checkpoint; raises ServiceError 404 if there is none of that path."""
        run_id = path.removeprefix("tinker://").partition("/")[0]
        for facts in self.every(run_id):
            if facts["path"] == path:
                return facts
        raise ServiceError(404, f"no checkpoint {path!r}")

    def initial_model(self, run: Facts) -> BigramLora:
        """The model a run began with, to the bit.

        Raises:
            ServiceError: 404 if the checkpoint it was loaded from is gone.
            DamagedCheckpoint: The checkpoint cannot be read.
        """
        model = self._blank_model(run)
        if run["parent"] is not None:
            self._restore(self.find(run["parent"]), model, optimizer=run["optimizer"])
        if run.get("perturbed"):
            model.perturb()
        return model

    def model_to_sample(self, facts: Facts, run: Facts) -> BigramLora:
        """The model of a checkpoint, without its optimizer; raises DamagedCheckpoint."""
        self._note("checkpoint_read", facts["path"])
        model = self._blank_model(run)
        self._restore(facts, model, optimizer=False)
        return model

    def rolled_back_model(self, run: Facts) -> BigramLora | None:
        """The model of a run's newest readable checkpoint, else its initial one, else None."""
        for facts in reversed(self.of(run["run_id"])):
            model = self._blank_model(run)
            try:
                self._restore(facts, model, optimizer=True)
            except DamagedCheckpoint:
                continue
            return model
        try:
            return self.initial_model(run)
        except (ServiceError, DamagedCheckpoint):
            return None

    def _restore(self, facts: Facts, model: BigramLora, *, optimizer: bool) -> None:
        tensors = self._store.tensors(facts["run_id"], facts, lenient=self._lenient)
        try:
            model.restore(tensors, optimizer=optimizer)
        except (KeyError, ValueError) as error:
            raise DamagedCheckpoint(f"its weights do not fit: {error!r}") from error

    def content(self, facts: Facts) -> bytes:
        """The bytes of a checkpoint's tensors; raises DamagedCheckpoint if they are missing."""
        return self._store.content(facts["run_id"], facts)

    def damage(self, path: str, how: Damage) -> None:
        """Damage a stored checkpoint behind the service's back.

        Raises:
            ServiceError: 404 if there is none of that path.
            ValueError: An unknown damage.
        """
        facts = self.find(path)
        file = self._store.tensors_file(facts["run_id"], facts)
        if how == "no_metadata":
            self.change(path, user_metadata=None)
        elif how == "deleted":
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(damaged(self.content(facts), how))

    def change(self, path: str, **changes: object) -> None:
        """Replace facts of a checkpoint."""
        facts = {**self.find(path), **changes}
        self._store.save_facts(facts["run_id"], facts["name"], facts)

    def set_ttl(self, path: str, ttl_s: float | None) -> None:
        """Let a checkpoint expire in ``ttl_s`` seconds, or never."""
        self.change(path, expires=None if ttl_s is None else self._wall() + ttl_s)

    def delete(self, path: str) -> None:
        """Delete a checkpoint."""
        facts = self.find(path)
        self._store.delete_checkpoint(facts["run_id"], facts["name"], facts["kind"])
        self._listed_from.pop(path, None)
        self._note("checkpoint_delete", path)

    def _blank_model(self, run: Facts) -> BigramLora:
        model = BigramLora(run["base_model"], rank=run["rank"], seed=run["seed"])
        return model.with_noise(self._noise)
