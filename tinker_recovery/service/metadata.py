"""What a service does with the metadata of a save, and what is known where it keeps none.

There are services that accept ``user_metadata`` and forget it, and services that refuse a save that
has it. What a listing then lacks is filled in before anything reads it: what this process, or the
journal, knows of that save; failing that, what the save's name says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from tinker import types

from tinker_recovery.checkpoints import run_id_unchecked
from tinker_recovery.checkpoints.metadata import FORMAT, PREFIX, STATE_MISSING
from tinker_recovery.checkpoints.naming import SaveName, lineage_by_mark, mark_of

Keeps = Literal["unknown", "kept", "forgotten", "refused"]
"""What a service does with ``user_metadata``."""

_REFUSALS = frozenset({400, 422})
"""What a service answers to a field that it does not know."""

Place = tuple[str, str]


class ServiceMetadata:
    """The metadata of saves at one service. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.keeps: Keeps = "unknown"
        """What the service does with it, as far as that is known."""
        self.on_learned: Callable[[Keeps], None] = lambda _: None
        """Called once it is found out that the service keeps none, or that it does."""
        self._proven = False
        self._known: dict[Place, Mapping[str, str]] = {}
        self._listed: set[Place] = set()
        self._sent: set[Place] = set()
        self._awaited: set[Place] = set()
        self._unwritten: dict[str, str] = {}
        self._lineages: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._parents: dict[str, str | None] = {}

    # What is known of runs, attempts and saves

    def know(self, lineage: str, run_name: str | None = None) -> None:
        """A run whose saves are to be recognised by their names."""
        self._lineages[mark_of(lineage)] = lineage
        if run_name is not None:
            self._names[mark_of(run_name)] = run_name

    def know_name(self, run_name: str) -> None:
        """A run that is looked for by its name."""
        self._names[mark_of(run_name)] = run_name

    def know_attempt(self, attempt: str, parent: str | None) -> None:
        """Which checkpoint an attempt started from; None if it started without one."""
        self._parents[attempt] = parent

    def recall(self, keeps: str | None, said: Mapping[str, str]) -> None:
        """Take over what the journal has noted.

        Args:
            keeps: What the service does with metadata.
            said: Metadata of saves as JSON, by path.
        """
        if self.keeps == "unknown" and (keeps in {"kept", "forgotten", "refused"}):
            self.keeps = keeps  # type: ignore[assignment]  # one of the three, by the line above
        for path, text in said.items():
            if _place(path) not in self._known:
                self._known[_place(path)] = json.loads(text)

    def submitted(self, run_id: str, name: str, metadata: Mapping[str, str], *, sent: bool) -> None:
        """A save of the schedule is submitted; no other has its name."""
        if self._proven and self.keeps == "kept":
            return
        self._known[run_id, name] = metadata
        if sent:
            self._sent.add((run_id, name))

    def stored(self, path: str) -> None:
        """A save is stored: the next listing shows whether its metadata is."""
        place = _place(path)
        if place in self._sent:
            self._sent.discard(place)
            self._awaited.add(place)
        if place in self._known:
            self._unwritten[path] = json.dumps(self._known[place])

    def to_write(self) -> dict[str, str]:
        """What the journal has to keep, as the service does not: JSON by path; each once."""
        if self.keeps not in {"forgotten", "refused"}:
            return {}
        written, self._unwritten = self._unwritten, {}
        return written

    # What the service does

    def is_refusal(self, error: BaseException | None) -> bool:
        """Whether a save may have failed because of its metadata."""
        status = getattr(error, "status_code", None)
        proven = self._proven and self.keeps == "kept"
        return status in _REFUSALS and self.keeps != "refused" and not proven

    def refused(self) -> None:
        """The service has refused a save for its metadata: none is sent from now on."""
        self._learn("refused")

    def _learn(self, keeps: Keeps) -> None:
        news = keeps != self.keeps
        self.keeps, self._proven = keeps, True
        self._awaited.clear()
        self._sent.clear()
        if keeps == "kept":
            self._known.clear()
            self._listed.clear()
            self._unwritten.clear()
        if news:
            self.on_learned(keeps)

    # Reading a listing

    def filled(
        self, entries: Sequence[types.Checkpoint], run_id: str | None = None
    ) -> list[types.Checkpoint]:
        """The entries of a listing, those that lack metadata of ours with what is known of it.

        Args:
            entries: As the service lists them.
            run_id: The Tinker run, if these are all its checkpoints.
        """
        for entry in entries if self._awaited else ():
            if (place := _place(entry.tinker_path)) in self._awaited:
                self._awaited.discard(place)
                self._learn("kept" if _has_ours(entry) else "forgotten")
        if self.keeps == "unknown" and any(map(_has_ours, entries)):
            self.keeps = "kept"  # by another process, so this one's own first save decides
        if run_id is not None and (self._listed or self._known):
            self._drop_gone(run_id, {_place(entry.tinker_path) for entry in entries})
        return [entry if _has_ours(entry) else self._filled(entry) for entry in entries]

    def _drop_gone(self, run_id: str, there: set[Place]) -> None:
        for place in [each for each in self._listed if each[0] == run_id and each not in there]:
            self._listed.discard(place)
            self._known.pop(place, None)
        self._listed |= there & self._known.keys()

    def _filled(self, entry: types.Checkpoint) -> types.Checkpoint:
        place = _place(entry.tinker_path)
        said = self._known.get(place)
        if said is None and self.keeps != "kept":
            said = self._by_name(SaveName.read(place[1]))
        if said is None or entry.checkpoint_type != "training":
            return entry
        return entry.model_copy(update={"user_metadata": {**(entry.user_metadata or {}), **said}})

    def _by_name(self, name: SaveName | None) -> Mapping[str, str] | None:
        if name is None:
            return None
        fields = {
            "format": FORMAT,
            "step": str(name.step),
            "sound_step": str(name.step - name.lag),
            "attempt": name.attempt,
            "lineage": self._lineages.get(name.lineage, lineage_by_mark(name.lineage)),
            "saved_by": "schedule",
            "parent": self._parents.get(name.attempt),
            "run_name": self._names.get(name.run),
            STATE_MISSING: "yes" if name.has_state else None,
        }
        return {PREFIX + key: value for key, value in fields.items() if value is not None}


def _place(path: str) -> Place:
    return run_id_unchecked(path), path.rpartition("/")[2]


def _has_ours(entry: types.Checkpoint) -> bool:
    return PREFIX + "format" in (entry.user_metadata or {})
