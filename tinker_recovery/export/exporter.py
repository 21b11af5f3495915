"""The Exporter: from a checkpoint's path to a folder that others can load.

What it needs of the service it asks over an HTTP client of its own (see
:mod:`tinker_recovery.service.export_session`). What was downloaded stays in ``.partial`` in the
folder until all is there, so a later call goes on where this one was stopped, by whatever.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import anyio
import anyio.to_thread

from tinker_recovery.checkpoint_policy import Format
from tinker_recovery.checkpoints.files import inspect_file
from tinker_recovery.checkpoints.safetensors_header import DamagedFile
from tinker_recovery.errors import (
    ExportRefused,
    ExportUnavailable,
    NoUsableCheckpoint,
    StatusError,
    StatusRefused,
)
from tinker_recovery.export.adapter import WEIGHTS, Adapter, make_loadable
from tinker_recovery.export.durable import sync, write_whole
from tinker_recovery.export.formats import check_format, convert, files_of
from tinker_recovery.export.manifest import MANIFEST, CheckpointFacts, Manifest
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.bounded import DEFAULT_LIMITS, ReplyLimits
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.download import Download
from tinker_recovery.service.export import Limits
from tinker_recovery.service.export_session import Exported, make_export
from tinker_recovery.service.http import ServiceHttp
from tinker_recovery.shielding import to_the_end

PARTIAL = ".partial"
"""The folder of what is not finished yet."""

TIMEOUT_S = 60.0
"""Deadline of one request: longer than a service holds a poll."""

_STATE = "state.json"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """How far an export is.

    Attributes:
        phase: ``loading``, ``exporting``, ``downloading``, ``checking`` or ``writing``.
        done_bytes: Bytes downloaded.
        total_bytes: Of how many; None if that is not known.
    """

    phase: str
    done_bytes: int = 0
    total_bytes: int | None = None


class Exporter:
    """Exports checkpoints of one service; ``async with Exporter(endpoint) as exporter:``.

    Args:
        endpoint: The service.
        limits: How long each part may take.
        reply_limits: How much of a reply, and of an export, is read.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        limits: Limits | None = None,
        reply_limits: ReplyLimits = DEFAULT_LIMITS,
    ) -> None:
        self._limits = limits or Limits()
        self._http = ServiceHttp(endpoint, timeout_s=TIMEOUT_S, limits=reply_limits)
        self._calls = CheckpointCalls(self._http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._http.aclose()

    async def export(
        self,
        checkpoint: CheckpointFacts,
        to: Path,
        form: Format = "safetensors",
        *,
        base: Path | None = None,
        progress: Callable[[ExportProgress], object] = lambda _: None,
    ) -> Manifest:
        """Export a checkpoint into a folder; nothing is done if it is there already.

        Cancellable at any point, and gone on with by the next call for that folder.

        Args:
            checkpoint: What to export.
            to: The folder, made if it does not exist.
            form: The format.
            base: A folder with the base model's ``config.json``, for ``gguf``.
            progress: Called as it goes on.

        Raises:
            ExportRefused: The folder holds something else, the export does not fit the format, or
                the service refuses.
            ExportUnavailable: The disk is full, or the service out of reach: try again.
            NoUsableCheckpoint: The service has no such checkpoint.
        """
        try:
            return await self._export(checkpoint, to, form, base, progress)
        except OSError as error:
            raise _of_disk(error, to) from error
        except StatusRefused as error:
            raise ExportRefused(f"{checkpoint.path} was not exported: {error}") from error
        except (StatusError, TimeoutError) as error:
            raise ExportUnavailable(
                f"{checkpoint.path} was not exported: {error}; what was downloaded is kept, and "
                "the next try goes on from there"
            ) from error

    async def _export(
        self,
        checkpoint: CheckpointFacts,
        to: Path,
        form: Format,
        base: Path | None,
        progress: Callable[[ExportProgress], object],
    ) -> Manifest:
        check_format(form)
        done = await anyio.to_thread.run_sync(_already, to, checkpoint, form)
        if done is not None:
            return done
        work = _Work(to / PARTIAL, checkpoint.path)
        await anyio.to_thread.run_sync(work.open, form)
        if not work.finished:
            await self._fill(work, checkpoint, form, base, progress)
        manifest = await anyio.to_thread.run_sync(work.move, to)
        await self._delete(work.export)
        return manifest

    async def _fill(
        self,
        work: _Work,
        checkpoint: CheckpointFacts,
        form: Format,
        base: Path | None,
        progress: Callable[[ExportProgress], object],
    ) -> None:
        """Have all that the folder is to hold in the folder of what is not finished."""
        try:
            if not work.downloaded:
                await self._download(work, checkpoint.path, progress)
            progress(ExportProgress("checking"))
            adapter = await anyio.to_thread.run_sync(
                lambda: _checked(work.files, checkpoint.base_model)
            )
            progress(ExportProgress("writing"))
            await convert(adapter, form, base=base)
        except (ExportRefused, StatusRefused, NoUsableCheckpoint):
            await self._discard(work)
            raise
        facts = replace(checkpoint, base_model=adapter.base_model)
        await anyio.to_thread.run_sync(work.finish, form, facts)

    async def _download(
        self, work: _Work, path: str, progress: Callable[[ExportProgress], object]
    ) -> None:
        export = await self._left(work)
        if export is None:
            await anyio.to_thread.run_sync(work.restart)
            export = await make_export(
                path,
                self._http,
                limits=self._limits,
                phase=lambda phase: progress(ExportProgress(phase)),
            )
            await anyio.to_thread.run_sync(work.note, export)
        total = export.size_bytes

        def received(done: int) -> None:
            # A service may list the weights without their config.
            progress(ExportProgress("downloading", done, total and max(total, done)))

        received(0)
        await Download(
            export.path,
            work.files,
            calls=self._calls,
            limits=self._limits,
            now=lambda: datetime.fromtimestamp(self._http.clock.now(), UTC),
            received=received,
            listed_bytes=total,
            resume=True,
        ).files()
        await anyio.to_thread.run_sync(work.note_downloaded)

    async def _left(self, work: _Work) -> Exported | None:
        """The export that an earlier call has begun to download, if it is still there."""
        if work.export is None:
            return None
        try:
            await self._calls.signed_files(work.export.path)
        except StatusRefused:
            return None
        return work.export

    async def _discard(self, work: _Work) -> None:
        await self._delete(work.export)
        await to_the_end(anyio.to_thread.run_sync(work.remove))

    async def _delete(self, export: Exported | None) -> None:
        """Delete an export; the service does so by itself within the hour."""
        if export is not None:
            await to_the_end(self._calls.remove(export.path, deadline_s=self._limits.close_s))


class _Work:
    """What is not finished yet, as a folder."""

    def __init__(self, folder: Path, checkpoint: str) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.export: Exported | None = None
        self.downloaded = False
        self._checkpoint = checkpoint

    def open(self, form: Format) -> None:
        """Read what an earlier call has left, if it is of the same checkpoint and format."""
        try:
            said = json.loads((self.folder / _STATE).read_text())
            if said["checkpoint"] == self._checkpoint and self._is_of(form):
                self.export = Exported(said["export"], said["size_bytes"])
                self.downloaded = bool(said["downloaded"])
        except (OSError, ValueError, KeyError, TypeError):
            self.export = None
        if self.export is None:
            self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self.remove()
        self.files.mkdir(parents=True)
        self.export, self.downloaded = None, False

    def note(self, export: Exported) -> None:
        """An export was made."""
        self.export = export
        self._write()

    def note_downloaded(self) -> None:
        """All its files are here, and on the disk."""
        for place in (*self.files.rglob("*"), self.files):
            sync(place)
        self.downloaded = True
        self._write()

    def _is_of(self, form: Format) -> bool:
        manifest = Manifest.of_folder(self.folder)
        return manifest is None or manifest.format == form

    @property
    def finished(self) -> bool:
        """Whether all is there, and only to be moved."""
        return (self.folder / MANIFEST).exists()

    def finish(self, form: Format, checkpoint: CheckpointFacts) -> None:
        """All is there: from here on nothing is made again."""
        names = list(files_of(form))
        for name in names:  # those that were not downloaded, but made of that
            sync(self.files / name)
        Manifest.of(self.files, names, form, checkpoint).write(self.folder)

    def move(self, to: Path) -> Manifest:
        """Move what is finished to where it belongs, its manifest last."""
        manifest = Manifest.of_folder(self.folder)
        assert manifest is not None  # noqa: S101 - it is finished
        for name in manifest.files:
            if (self.files / name).exists():  # else it was moved before a kill
                (self.files / name).replace(to / name)
        sync(to)
        (self.folder / MANIFEST).replace(to / MANIFEST)
        sync(to)
        self.remove()
        return manifest

    def _write(self) -> None:
        assert self.export is not None  # noqa: S101 - noted before
        facts = {
            "checkpoint": self._checkpoint,
            "export": self.export.path,
            "size_bytes": self.export.size_bytes,
            "downloaded": self.downloaded,
        }
        write_whole(self.folder / _STATE, json.dumps(facts))

    def remove(self) -> None:
        """Remove it all."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _already(to: Path, checkpoint: CheckpointFacts, form: Format) -> Manifest | None:
    """The manifest of the folder, if it holds this export already.

    Raises:
        ExportRefused: It holds something else.
    """
    manifest = Manifest.of_folder(to)
    if manifest is not None:
        if manifest.checkpoint.path == checkpoint.path and manifest.format == form:
            if manifest.is_sound(to):
                return manifest
        else:
            raise ExportRefused(
                f"{to} holds {manifest.checkpoint.path} as {manifest.format}: choose another "
                "folder, or remove that one"
            )
    elif to.exists() and not to.is_dir():
        raise ExportRefused(f"{to} is a file: give a folder")
    elif not (to / PARTIAL / _STATE).exists() and (
        there := [name for name in files_of(form) if (to / name).exists()]
    ):
        raise ExportRefused(
            f"{to} has {', '.join(there)}, which no export of ours has left there: choose another "
            "folder"
        )
    to.mkdir(parents=True, exist_ok=True)
    return None


def _checked(folder: Path, base_model: str | None) -> Adapter:
    try:
        inspect_file(folder / WEIGHTS)
    except DamagedFile as error:
        raise ExportRefused(f"{WEIGHTS} of the export is not sound: {error}") from error
    return make_loadable(folder, base_model=base_model)


def _of_disk(error: OSError, to: Path) -> ExportUnavailable:
    if error.errno in _FULL:
        return ExportUnavailable(
            f"the disk of {to} is full, or what a process may write there is used up "
            f"({error.strerror}): make room, and try again; what was downloaded is kept"
        )
    return ExportUnavailable(f"{to} cannot be written: {error}")
