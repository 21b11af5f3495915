"""The Verifier: whether a checkpoint can be trusted, by every level, down to its bytes.

The first three levels are the :class:`Inspector`'s; the others load the checkpoint into a session.
An outage is an error, and never an objection to a checkpoint.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
from tinker import types

from tinker_recovery.checkpoints import (
    Canary,
    CheckpointRecord,
    FileFacts,
    Finding,
    Listed,
    WeightsFacts,
    check_bytes,
    check_canary,
    check_metadata,
    run_id_of,
    with_canaries,
)
from tinker_recovery.checkpoints.canary import answer_of
from tinker_recovery.checkpoints.prompt import digest_of
from tinker_recovery.errors import StatusError, StatusRefused, StatusUnavailable, UsageError
from tinker_recovery.faults import SeenIn, Verdict, judge
from tinker_recovery.journal import Notes
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.inspector import Inspector, recorded_of
from tinker_recovery.service import Connection, RunStatus
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.download import Download
from tinker_recovery.service.export import Limits, exported, loaded
from tinker_recovery.service.missing_routes import is_missing
from tinker_recovery.service.refusals import in_words, is_refused
from tinker_recovery.service.waiting import result_of

DEFAULT_LIMITS = Limits()

ASKED = 2
"""How often the service is asked to load a checkpoint before its refusal counts: a verdict may be
what a checkpoint is given up for."""

_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a deep look has come.

    Attributes:
        phase: What is being done.
        done_bytes: Bytes downloaded.
        total_bytes: Bytes to download; None where the service does not say.
    """

    phase: Literal["loading", "exporting", "downloading", "checking"]
    done_bytes: int = 0
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CanaryBatch:
    """The batch whose answers are stored with checkpoints as fingerprints.

    Attributes:
        batch: The same that was used when they were saved.
        tolerance: Largest absolute difference of a logprob that still counts as equal.
    """

    batch: Sequence[types.Datum]
    tolerance: float = 0.0


def _say_nothing(_: Progress) -> None:
    pass


class _NoExportError(Exception):
    """The service has no export."""


class Verifier:
    """Looks at checkpoints of one service, as deep as is asked for."""

    def __init__(self, collaborators: Collaborators, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.collaborators = collaborators
        self.limits = limits
        self.calls = CheckpointCalls(collaborators.reader.http)
        self._inspector = Inspector(collaborators.reader)

    async def verify(
        self,
        path: str,
        *,
        deep: bool = False,
        canary: CanaryBatch | None = None,
        lineage: str | None = None,
        progress: Callable[[Progress], object] = _say_nothing,
    ) -> list[Finding]:
        """What each level says, the cheapest first: trusted if all are ``ok`` and ``looked``.

        ``metadata``, ``listing`` and ``weights`` cost a few small requests; ``weights`` is left out
        where nothing can be compared. ``canary`` and ``bytes`` load the checkpoint into a session
        of its own, and ``bytes`` downloads its weights into a temporary folder. They are left out
        when the listing or the weights object, and ``canary`` where no fingerprint is known. What
        the service refuses to load, asked twice, is an objection at ``bytes``, or without ``deep``
        at ``canary``. Where the service has no export, ``bytes`` is found not ``looked`` at.

        An objection at ``bytes`` is found twice, in two sessions, before it counts: an export can
        be damaged on its way as well. Checksums are noted when a checkpoint is first found whole.
        Those of what the schedule saved, whose names are used once, are compared ever after; a
        service whose exports are not the same twice is noticed, and its checksums say nothing. The
        optimizer's moments are in no export, so they are not checked.

        Cancelling it, like every other way out, deletes the export and finishes the session first,
        each within ``limits.close_s``.

        Args:
            path: ``tinker://RUN/weights/NAME``.
            deep: Whether to look at the bytes.
            canary: The batch to ask, if there is one.
            lineage: The run it should belong to; None for any.
            progress: Called often during a deep look; must be quick, and not raise.

        Raises:
            UsageError: The path has another form.
            StatusUnavailable: The service was out of reach, or too slow: this says nothing about
                the checkpoint, and trying again may help.
            StatusRefused: It refuses to answer, or its answer makes no sense.
            JournalError: The notes cannot be read or written.
            OSError: The temporary folder cannot be written.
        """
        run_id = run_id_of(path)
        collaborators = self.collaborators
        notes = await collaborators.notebook.notes()
        verdicts, record = await self._listed(run_id, path, lineage, notes)
        if not verdicts[-1].ok:
            return verdicts
        weights = await self._inspector.weights(path, await self._weights_of(run_id))
        if weights is not None:
            verdicts.append(weights)
            if not weights.ok:
                return verdicts
        asked = (record, canary) if canary is not None and record and record.canary else None
        if not deep and asked is None:
            return verdicts
        recorded = None if record is None else recorded_of(Listed.of(record), notes.files)
        look = _Look(self, path, recorded, progress)
        async with AsyncExitStack() as stack:
            connection = await look.load(stack)
            if isinstance(connection, str):
                level: Literal["bytes", "canary"] = "bytes" if deep else "canary"
                return [*verdicts, Finding(level, ok=False, reason=connection)]
            if asked is not None:
                verdicts.append(await self._canary(connection, *asked))
            if deep:
                verdicts.append(await look.bytes(connection, stack))
        return verdicts

    async def _weights_of(self, run_id: str) -> WeightsFacts:
        """What a run's weights are; nothing is known of a run that is gone.

        Any other refusal is raised: a level that was not looked at must not pass for sound.
        """
        try:
            return RunStatus.of(await self.collaborators.reader.run(run_id)).weights
        except StatusRefused as error:
            if error.status_code != HTTPStatus.NOT_FOUND:
                raise
            return WeightsFacts()

    async def _listed(
        self, run_id: str, path: str, lineage: str | None, notes: Notes
    ) -> tuple[list[Finding], CheckpointRecord | None]:
        """Metadata and listing; the listing is the last, and alone if it is not listed."""
        checkpoints = self.collaborators.reader.checkpoints
        listed = {each.tinker_path: Listed.read(each) for each in await checkpoints(run_id)}
        size = recorded_of(listed.get(path), notes.sizes)
        listing = self._inspector.listing(path, listed.get(path), size)
        if path not in listed:
            return [listing], None
        record = listed[path].record
        parent = None
        if record is not None and record.parent is not None:
            parents = await checkpoints(run_id_of(record.parent))
            parent = next(
                (Listed.read(each).record for each in parents if each.tinker_path == record.parent),
                None,
            )
        size = listed[path].size_bytes
        if listing.ok and size is not None:
            await self.collaborators.notebook.note_sizes({path: size})
        verdicts = [check_metadata(listed[path], lineage=lineage, parent=parent), listing]
        records = with_canaries(each.record for each in listed.values() if each.record is not None)
        record = next((each for each in records if each.path == path), None)
        if record is not None and record.canary is None:
            record = record.model_copy(update={"canary": notes.canaries.get(path)})
        return verdicts, record

    async def _canary(
        self, connection: Connection, record: CheckpointRecord, canary: CanaryBatch
    ) -> Finding:
        asking = connection.training.forward(list(canary.batch), "cross_entropy")
        try:
            with anyio.fail_after(self.limits.answer_s):
                answer = answer_of(await result_of(asking.future()))
        except Exception as error:
            raise _as_status("the canary could not be asked", error) from error
        try:
            seen = Canary.of(answer)
        except UsageError as error:
            return Finding("canary", ok=False, reason=str(error))
        asked = digest_of(canary.batch)
        return check_canary(record, seen, prompt=asked, tolerance=canary.tolerance)


class _Look:
    """One look at one checkpoint's bytes."""

    def __init__(
        self,
        verifier: Verifier,
        path: str,
        recorded: str | None,
        progress: Callable[[Progress], object],
    ) -> None:
        self._limits = verifier.limits
        self._calls = verifier.calls
        self._collaborators = verifier.collaborators
        self._path = path
        self._recorded = None if recorded is None else decode_files(recorded)
        self._progress = progress

    async def load(self, stack: AsyncExitStack) -> Connection | str:
        """A session with the checkpoint's weights; or why the service, asked twice, refuses."""
        refusals: list[Exception] = []
        while len(refusals) < ASKED:
            self._progress(Progress("loading"))
            loading = loaded(self._path, self._collaborators.backend, limits=self._limits)
            try:
                return await stack.enter_async_context(loading)
            except Exception as error:
                if not is_refused(error):
                    raise _as_status(f"{self._path} could not be loaded", error) from error
                refusals.append(error)
        return f"the service does not load it: {in_words(refusals[-1])}"

    async def bytes(self, connection: Connection, stack: AsyncExitStack) -> Finding:
        """What its files say; an objection is looked into once more, in another session."""
        try:
            first, facts = await self._export(connection)
        except _NoExportError:
            why = "not looked at: this service has no export"
            return Finding("bytes", ok=True, reason=why, looked=False)
        found = self._compare(first, facts)
        if not found.ok:
            await stack.aclose()
            async with AsyncExitStack() as other:
                again = await self.load(other)
                if isinstance(again, str):
                    return Finding("bytes", ok=False, reason=again)
                second, facts_again = await self._export(again)
            found = self._compare(second, facts_again)
            if first.ok and second.ok and not found.ok and facts_again != facts:
                return replace(
                    second,
                    reason=f"{second.reason}; this service's exports are not the same twice, so "
                    "the checksums recorded at first sight say nothing",
                )
            facts = facts_again
        if found.ok and self._recorded is None:
            await self._collaborators.notebook.note_files(self._path, encode_files(facts))
        return found

    def _compare(self, found: Finding, facts: Mapping[str, FileFacts]) -> Finding:
        """The verdict on whole files, after comparing them with those of first sight."""
        if not found.ok or self._recorded is None:
            return found
        against = [
            f"{name}: it has SHA-256 {seen.sha256 if seen else 'none, for it is gone'}, and "
            f"{known.sha256} was recorded at first sight"
            for name, known in self._recorded.items()
            if (seen := facts.get(name)) != known
        ]
        return Finding("bytes", ok=False, reason="; ".join(against)) if against else found

    async def _export(self, connection: Connection) -> tuple[Finding, dict[str, FileFacts]]:
        """Export, download and read through."""
        calls, limits = self._calls, self._limits
        self._progress(Progress("exporting"))
        with tempfile.TemporaryDirectory(prefix="tinker-recovery-") as folder:
            try:
                async with exported(connection, calls, limits=limits) as export:
                    total = await self._size_of(connection.run_id, export)
                    files = await Download(
                        export,
                        Path(folder),
                        calls=calls,
                        limits=limits,
                        now=self._collaborators.reader.service_date,
                        received=lambda done: self._progress(Progress("downloading", done, total)),
                        listed_bytes=total,
                    ).files()
            except Exception as error:
                if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                    raise  # the disk's trouble, not the service's
                if is_missing(error):
                    raise _NoExportError from error
                raise _as_status(f"{self._path} could not be exported", error) from error
            self._progress(Progress("checking", total or 0, total))
            return await self._read(files)

    async def _size_of(self, run_id: str, export: str) -> int | None:
        listed = await self._collaborators.reader.checkpoints(run_id)
        return next((each.size_bytes for each in listed if each.tinker_path == export), None)

    async def _read(self, files: Mapping[str, Path]) -> tuple[Finding, dict[str, FileFacts]]:
        tensors = {place: name for name, place in files.items() if name.endswith(_SUFFIX)}
        if not tensors:
            raise StatusRefused(
                f"the export of {self._path} holds {', '.join(files)}, and no {_SUFFIX} file: this "
                "version of tinker_recovery cannot tell whether they are whole"
            )
        verdict, facts = await anyio.to_thread.run_sync(check_bytes, tensors)
        return verdict, {tensors[place]: each for place, each in facts.items()}


def encode_files(facts: Mapping[str, FileFacts]) -> str:
    """Checksums as they are noted in the journal."""
    return json.dumps({name: [each.size_bytes, each.sha256] for name, each in facts.items()})


def decode_files(said: str) -> dict[str, FileFacts]:
    """What :func:`encode_files` wrote."""
    return {name: FileFacts(size, sha256) for name, (size, sha256) in json.loads(said).items()}


def _as_status(what: str, error: Exception) -> StatusError:
    """What a service answered that is no answer."""
    if isinstance(error, StatusError):
        return error
    row = judge(error, SeenIn.CREATE)
    refused = row is not None and row.verdict is Verdict.GIVE_UP
    return (StatusRefused if refused else StatusUnavailable)(f"{what}: {error!r}")
