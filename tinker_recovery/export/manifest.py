"""The manifest of an exported folder: what it holds, and of which checkpoint.

It is written last, so a folder with a manifest is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tinker_recovery.errors import ExportRefused
from tinker_recovery.export.durable import write_whole

if TYPE_CHECKING:
    from tinker_recovery.journal.publication import Publication

MANIFEST = "tinker_recovery.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """What is known of the checkpoint that is exported.

    Attributes:
        path: Its ``tinker://`` path.
        run: The run's name, or its Tinker run id.
        lineage: Id of the logical run; empty where a supervised client did not save it.
        step: Optimizer steps in it; None if that is not known.
        base_model: What it was trained on; None if the service does not say.
        metrics: What the loop had reported at that step.
        recoveries: How often the run had been recovered; None if that is not known.
    """

    path: str
    run: str
    lineage: str = ""
    step: int | None = None
    base_model: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    recoveries: int | None = None

    @classmethod
    def of(cls, publication: Publication) -> Self:
        """Those that were noted when it was to be published."""
        return cls(
            path=publication.path,
            run=publication.run,
            lineage=publication.lineage,
            step=publication.step,
            base_model=publication.base_model,
            metrics=publication.metrics,
            recoveries=publication.recoveries,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a folder holds.

    Attributes:
        format: How the adapter is stored: ``safetensors``, ``pytorch`` or ``gguf``.
        digest: SHA-256 over the names and checksums of its files; equal for equal folders.
        files: Bytes and SHA-256 of each file, by name.
        checkpoint: Of which checkpoint.
    """

    format: str
    digest: str
    files: Mapping[str, tuple[int, str]]
    checkpoint: CheckpointFacts

    @classmethod
    def of(cls, folder: Path, names: list[str], form: str, checkpoint: CheckpointFacts) -> Self:
        """That of a folder with these files. Blocks while it reads them."""
        files = {name: _facts(folder / name) for name in sorted(names)}
        said = json.dumps(files, sort_keys=True).encode()
        digest = hashlib.sha256(said).hexdigest()
        return cls(format=form, digest=digest, files=files, checkpoint=checkpoint)

    def write(self, folder: Path) -> None:
        """Write it, all or nothing."""
        write_whole(folder / MANIFEST, json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read one; raises ExportRefused if it is none."""
        try:
            said: dict[str, Any] = json.loads(text)
            return cls(
                format=str(said["format"]),
                digest=str(said["digest"]),
                files={name: (int(size), str(sha)) for name, (size, sha) in said["files"].items()},
                checkpoint=CheckpointFacts(**said["checkpoint"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExportRefused(f"{MANIFEST} is no manifest of an export: {error!r}") from error

    @classmethod
    def of_folder(cls, folder: Path) -> Self | None:
        """That of a folder; None if it has none.

        Raises:
            ExportRefused: It has a file of that name which is no manifest.
        """
        try:
            text = (folder / MANIFEST).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls.from_text(text)

    def is_whole(self, folder: Path) -> bool:
        """Whether each of its files is there, of its size."""
        return all(
            (folder / name).is_file() and (folder / name).stat().st_size == size
            for name, (size, _) in self.files.items()
        )

    def is_sound(self, folder: Path) -> bool:
        """Whether each of its files is there, and the one it was. Blocks while it reads them."""
        return self.is_whole(folder) and all(
            _facts(folder / name) == facts for name, facts in self.files.items()
        )


def _facts(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
