"""Sessions, runs and checkpoints on disk, written so that a kill loses nothing acknowledged.

A checkpoint is a safetensors file and a JSON file beside it, in the folder of its kind
(``weights``, for samplers ``sampler_weights``, of an export ``external_weights``) in that of its
run. The JSON file is written last and names the other with its SHA-256; without it the checkpoint
does not exist. So an overwriting save leaves the old checkpoint or the new one, never half of each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from glob import escape as glob_escape
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

KINDS = ("weights", "sampler_weights", "external_weights")
"""The kinds of checkpoint, as they are named in a path."""


class DamagedCheckpoint(Exception):
    """A checkpoint's file is missing, or is not what was saved."""


def _write(path: Path, content: bytes) -> None:
    """Write all or nothing, however the server is killed.

    There is no fsync, which would take longer than the rest of a request: what is written outlives
    the process, and a test server need not survive a crash of the machine.
    """
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(path)


class Store:
    """Everything that survives the server, in a folder that is made if it does not exist."""

    def __init__(self, root: Path) -> None:
        self._root = root / "runs"
        self._root.mkdir(parents=True, exist_ok=True)
        self._sessions = root / "sessions"
        self._sessions.mkdir(exist_ok=True)
        self._serial = max(
            (int(facts["serial"]) for run in self._root.iterdir() for facts in self._facts(run)),
            default=0,
        )

    def _next(self) -> int:
        # Clocks and file times are no reliable order.
        self._serial += 1
        return self._serial

    def _facts(self, run: Path) -> Iterator[dict[str, Any]]:
        """The records of a run and of its checkpoints."""
        checkpoints = [file for kind in KINDS for file in (run / kind).glob("*.json")]
        for file in [run / "run.json", *checkpoints]:
            if file.exists():
                yield json.loads(file.read_text())

    def save_session(self, session: str, facts: Mapping[str, Any]) -> None:
        """Store a session's record."""
        _write(self._sessions / quote(session, safe=""), json.dumps(facts).encode())

    def sessions(self) -> list[dict[str, Any]]:
        """The records of all sessions, oldest first."""
        files = [file for file in self._sessions.iterdir() if file.suffix != ".part"]
        found = [json.loads(file.read_text()) for file in files]
        return sorted(found, key=lambda facts: int(facts["order"]))

    def _run(self, run_id: str) -> Path:
        return self._root / quote(run_id, safe="")

    def save_run(self, run_id: str, facts: Mapping[str, Any]) -> None:
        """Store a run's record."""
        folder = self._run(run_id)
        for kind in KINDS:
            (folder / kind).mkdir(parents=True, exist_ok=True)
        file = folder / "run.json"
        serial = json.loads(file.read_text())["serial"] if file.exists() else self._next()
        _write(file, json.dumps({**facts, "serial": serial}).encode())

    def runs(self) -> Iterator[dict[str, Any]]:
        """The records of all runs, oldest first."""
        files = [folder / "run.json" for folder in self._root.iterdir()]
        found = [json.loads(file.read_text()) for file in files if file.exists()]
        yield from sorted(found, key=lambda facts: int(facts["serial"]))

    def save_checkpoint(
        self,
        run_id: str,
        name: str,
        tensors: Mapping[str, NDArray[Any]],
        facts: Mapping[str, Any],
    ) -> int:
        """Store a checkpoint, replacing one of that kind and name; returns its size in bytes."""
        content = safetensors.numpy.save({key: np.array(value) for key, value in tensors.items()})
        file = self._file(run_id, name, facts["kind"])
        tensors_file = file.with_name(f"{file.stem}.{uuid4().hex[:8]}.safetensors")
        file.parent.mkdir(exist_ok=True)  # the run may be older than its kind of checkpoint
        _write(tensors_file, content)
        added = {
            "file": tensors_file.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content) + len(facts.get("config", "").encode()),
            "serial": self._next(),
        }
        self.save_facts(run_id, name, {**facts, **added})
        for other in file.parent.glob(f"{glob_escape(file.stem)}.????????.safetensors"):
            if other != tensors_file:
                other.unlink()
        return len(content)

    def _file(self, run_id: str, name: str, kind: str) -> Path:
        return self._run(run_id) / kind / f"{quote(name, safe='')}.json"

    def tensors_file(self, run_id: str, facts: Mapping[str, Any]) -> Path:
        """The safetensors file of a checkpoint."""
        return self._run(run_id) / str(facts["kind"]) / str(facts["file"])

    def save_facts(self, run_id: str, name: str, facts: Mapping[str, Any]) -> None:
        """Replace a checkpoint's record."""
        _write(self._file(run_id, name, facts["kind"]), json.dumps(facts).encode())

    def checkpoints(self, run_id: str, kind: str) -> list[dict[str, Any]]:
        """The records of a run's checkpoints of one kind, oldest first."""
        found = [json.loads(file.read_text()) for file in (self._run(run_id) / kind).glob("*.json")]
        return sorted(found, key=lambda facts: int(facts["serial"]))

    def content(self, run_id: str, facts: Mapping[str, Any]) -> bytes:
        """The bytes of a checkpoint's tensors; raises DamagedCheckpoint if they are missing."""
        try:
            return self.tensors_file(run_id, facts).read_bytes()
        except OSError as error:
            raise DamagedCheckpoint("its weights are missing") from error

    def tensors(
        self, run_id: str, facts: Mapping[str, Any], *, lenient: bool
    ) -> dict[str, NDArray[Any]]:
        """The tensors of a checkpoint; with ``lenient``, its checksum is ignored.

        Raises:
            DamagedCheckpoint: They are missing, or not what was saved.
        """
        content = self.content(run_id, facts)
        if not lenient and hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise DamagedCheckpoint("its weights are damaged: the checksum differs")
        try:
            return dict(safetensors.numpy.load(content))
        except safetensors.SafetensorError as error:
            raise DamagedCheckpoint(f"its weights cannot be read: {error}") from error

    def delete_checkpoint(self, run_id: str, name: str, kind: str) -> None:
        """Delete a checkpoint, its record first."""
        file = self._file(run_id, name, kind)
        file.unlink(missing_ok=True)
        for tensors_file in file.parent.glob(f"{glob_escape(file.stem)}.????????.safetensors"):
            tensors_file.unlink(missing_ok=True)
