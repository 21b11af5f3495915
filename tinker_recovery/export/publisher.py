"""The Publisher: publishes a run's checkpoints on a hub while it trains.

What is to be published is decided in :mod:`tinker_recovery.checkpoints.publishing`, and written to
the journal before anything is done for it: from then on retention keeps the checkpoint, and if this
process is killed, the next one on this journal goes on with it. One checkpoint is published at a
time, over an HTTP client of its own and in a process of its own, so nothing that trains, saves or
recovers waits for it: a recovery that begins takes the session that an export has at the service.
What fails is tried again with growing delays.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import anyio
import anyio.to_thread

from tinker_recovery.checkpoint_policy import CheckpointPolicy, Format
from tinker_recovery.checkpoints.publishing import (
    Candidate,
    Done,
    Intentions,
    intentions,
    next_of,
    read_done,
    write_done,
)
from tinker_recovery.errors import (
    ExportRefused,
    JournalError,
    LeaseLost,
    NoUsableCheckpoint,
    UsageError,
)
from tinker_recovery.export.exporter import Exporter, ExportProgress
from tinker_recovery.export.formats import check_format
from tinker_recovery.export.hub import Published, publish, repository_of
from tinker_recovery.export.leaving import EXPORTS, hand_over, is_passed, let_go, place_of, remove
from tinker_recovery.export.manifest import CheckpointFacts, Manifest
from tinker_recovery.export.published_run import PublishedRun
from tinker_recovery.export.waiting import Waiting
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.publication import Publication
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.service.bounded import ReplyLimits
from tinker_recovery.supervision import Child, ChildSpec
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

FIRST_DELAY_S, MOST_DELAY_S = 30.0, 3600.0
"""Seconds until something that failed is tried again: at first, and at most."""

SHUTDOWN_S = 15.0
"""How long it may take to stop: an export's session is finished, an upload's process ended."""

LOOK_S = 0.1
"""How often it is looked whether a recovery needs what an export has at the service."""

_IN_A_SESSION = frozenset({"loading", "exporting"})

Progress = Callable[[ExportProgress], object]


class _Interrupted(Exception):
    """A recovery has begun."""


class Publisher:
    """Publishes what the policy says; a child of the supervision tree.

    Args:
        collaborators: What it is done with; ``policy.checkpoints`` says what to publish, and
            something that falls due is looked for every ``policy.poll_interval_s``.
    """

    def __init__(self, collaborators: Collaborators) -> None:
        self._collaborators = collaborators
        self._policy: CheckpointPolicy = collaborators.policy.checkpoints
        self._notebook = collaborators.notebook
        self._events = collaborators.events
        self._clock = collaborators.clock
        journal = self._notebook.path
        # Beside the journal, so that the next process finds what this one has downloaded.
        self._folder = journal and journal.with_name(EXPORTS)
        self._temporary: Path | None = None
        self._runs: dict[str, PublishedRun] = {}
        self._waiting = Waiting()
        self._done: dict[str, Done] = {}
        self._news = anyio.Event()
        self._work_to_do = anyio.Event()
        self._turn, self._looking = anyio.Lock(), anyio.Lock()
        self._attempted: str | None = None
        self._left: set[str] = set()  # whose files are removed once the attempt is over
        self._adopted = False
        self._let_go: set[str] = set()  # lineages

    @property
    def _active(self) -> bool:
        return self._policy.push_to_hub is not False and self._collaborators.policy.enabled

    def children(self) -> list[ChildSpec]:
        """The child of the supervision tree; none where nothing is to be published.

        Raises:
            UsageError: The package that the policy's format needs is not installed.
        """
        if not self._active:
            return []
        try:
            check_format(self._policy.format)
        except ExportRefused as error:
            raise UsageError(str(error)) from error
        return [ChildSpec(id="publisher", start=self.serve, shutdown=SHUTDOWN_S)]

    def ask(self, run: PublishedRun) -> None:
        """Something has changed: look soon whether it is to be published."""
        if self._active:
            self._runs[run.name] = run
            self._news.set()

    async def serve(self, child: Child) -> None:
        """Publish as it falls due, for ever; a child of the supervision tree."""
        child.started()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._remind)
                group.start_soon(self._work)
                while True:
                    # Beside the work: what waits has to be written down while it goes on.
                    await self._look()
                    self._work_to_do.set()
                    await self._news.wait()
                    self._news = anyio.Event()
        finally:
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)

    async def _work(self) -> None:
        while True:
            await self._work_to_do.wait()
            self._work_to_do = anyio.Event()
            async with self._turn:
                while (due := self._due()) is not None:
                    await self._attempt(due)

    async def settle(self) -> None:
        """Before the Supervisor ends: try once more what is owed, within its timeout."""
        if not self._active:
            return
        with anyio.move_on_after(self._policy.publish_timeout_s):
            async with self._turn:
                await self._look()
                tried: set[str] = set()
                while (due := self._due(but=tried, now=math.inf)) is not None:
                    tried.add(due.path)
                    await self._attempt(due)
        self._waiting.say_left(durable=self._notebook.path is not None)

    async def aclose(self) -> None:
        """After the tree has ended: leave what is still owed to whoever comes next."""
        try:
            await hand_over(self._notebook, self._waiting.all())
        except JournalError as error:
            logger.warning("what is not published yet waits for this process's end: %s", error)

    async def let_go(self, run: PublishedRun) -> None:
        """Where nothing is published: let go of what was to be of a run, by an earlier policy.

        Raises:
            JournalError: The journal cannot be used.
        """
        if not self._active and run.lineage not in self._let_go:
            await let_go(self._notebook, self._events, run.lineage)
            self._let_go.add(run.lineage)

    async def _remind(self) -> None:
        while True:
            await self._clock.sleep(self._collaborators.policy.poll_interval_s)
            self._news.set()

    def _due(self, but: set[str] | None = None, now: float | None = None) -> Publication | None:
        if self._recovering():
            return None
        at = self._clock.wall() if now is None else now
        due: dict[str, Publication] = {}
        for lineage in {each.lineage for each in self._waiting.all()}:
            of = {each.path: each for each in self._waiting.of(lineage)}
            # Later ones wait for the first, whatever keeps it: a repository only goes forward.
            first = next_of(map(_candidate, of.values()))
            if first is None or first.path in (but or ()):
                continue
            if self._waiting.next_at(first.path) <= at:
                due[first.path] = of[first.path]
        chosen = next_of(map(_candidate, due.values()))
        return None if chosen is None else due[chosen.path]

    def _recovering(self) -> bool:
        return any(run.recovering for run in self._runs.values())

    def _recovered(self) -> int:
        return sum(run.recovered for run in self._runs.values())

    # What is to be published

    async def _look(self) -> None:
        """Write down what is to be published besides what waits already."""
        try:
            async with self._looking:
                if not self._adopted:
                    await self._adopt()
                    self._adopted = True
                for run in list(self._runs.values()):
                    await self._intend(run)
        except Exception as error:  # noqa: BLE001 - a full disk, a journal that is busy: training continues
            # Without a note nothing is begun: it may be deleted meanwhile.
            logger.warning("what is to be published could not be written down: %s", error)

    async def _adopt(self) -> None:
        """Go on with what processes that are dead had begun."""
        notes = await self._notebook.notes()
        self._done = {lineage: read_done(said) for lineage, said in notes.published.items()}
        for path, said in notes.publications.items():
            found = Publication.read(said)
            if found is None or found.holder.lives() is not False:
                continue
            if found.repository is None:  # an export, which nobody goes on with
                await self._notebook.end_publication(path, instead_of=said)
                continue
            mine = replace(found, holder=self._here())
            if await self._notebook.write_publication(path, mine.said(), instead_of=said):
                self._waiting.add(mine)

    def keeps(self, run: PublishedRun) -> Mapping[str, str]:
        """What is to be published of a run and may not be noted yet: path to reason."""
        if not self._active:
            return {}
        return {each.path: "it is to be published" for each in self._intentions(run).add}

    def _intentions(self, run: PublishedRun) -> Intentions:
        waiting = {each.path: _candidate(each) for each in self._waiting.of(run.lineage)}
        return intentions(
            self._candidates(run),
            waiting,
            self._done.get(run.lineage, Done()),
            publish=self._policy.publish,
            ended=run.finished,
            mode=self._policy.best_mode,
        )

    async def _intend(self, run: PublishedRun) -> None:
        to = repository_of(self._policy.push_to_hub, run.name)
        elsewhere = [each for each in self._waiting.of(run.lineage) if each.repository != to]
        for each in elsewhere:
            # What was noted by a process that is dead, whose policy named another: it is in the way
            # of all that comes later, and may never get there.
            if each.path != self._attempted:
                publication = replace(each, repository=to)
                await self._notebook.write_publication(each.path, publication.said())
                self._waiting.add(publication)
        found = self._intentions(run)
        for candidate in found.add:
            publication = self._publication(run, candidate)
            await self._notebook.write_publication(candidate.path, publication.said())
            self._waiting.add(publication)
        for path in found.drop:
            await self._notebook.end_publication(path)
            self._waiting.drop(path)
            if path == self._attempted:
                self._left.add(path)  # its files are in use: half of them could be published
            else:
                await anyio.to_thread.run_sync(self._remove, path)
        if run.over and not found.add and not elsewhere:
            self._runs.pop(run.name, None)

    def _candidates(self, run: PublishedRun) -> list[Candidate]:
        metric = self._policy.best_metric
        gone = run.checkpoints.being_deleted
        found = []
        for step, paths in run.checkpoints.settled_on(run.segments).items():
            for path in paths:
                if path not in gone:
                    value = self._metrics(run, path).get(metric)
                    found.append(Candidate(path, step, value))
        return found

    @staticmethod
    def _metrics(run: PublishedRun, path: str) -> Mapping[str, float]:
        at = run.checkpoints.stored.get(path)
        return {} if at is None else run.saved_metrics.get(at, {})

    def _publication(self, run: PublishedRun, candidate: Candidate) -> Publication:
        push = self._policy.push_to_hub
        return Publication(
            path=candidate.path,
            run=run.name,
            lineage=run.lineage,
            step=candidate.step,
            value=candidate.value,
            base_model=run.base_model,
            metrics=dict(self._metrics(run, candidate.path)),
            recoveries=run.recovered,
            repository=repository_of(push, run.name),
            format=self._policy.format,
            mode=self._policy.best_mode,
            holder=self._here(),
        )

    def _here(self) -> Holder:
        return Holder.here(now=self._clock.wall(), lease_s=0.0)

    # Publishing it

    async def _attempt(self, publication: Publication) -> None:
        """Export and publish one; whatever happens, it is noted, and nothing is raised."""
        self._attempted = publication.path
        try:
            await self._attempt_it(publication)
        except Exception as error:  # noqa: BLE001 - a crash here would count against the Supervisor
            self._failed(publication, error)
        finally:
            self._attempted = None
        for path in list(self._left):
            self._left.discard(path)
            await anyio.to_thread.run_sync(self._remove, path)

    async def _attempt_it(self, publication: Publication) -> None:
        path = publication.path
        try:
            if await is_passed(self._notebook, publication):
                self._waiting.drop(path)
                self._left.add(path)
                return
            run = self._runs.get(publication.run)
            if run is not None and run.lineage == publication.lineage and not run.finished:
                await run.guard.check()
            manifest = await self._export(publication)
            done = await publish(self._place(path), manifest, str(publication.repository))
        except _Interrupted:
            return  # tried again at the next look
        except LeaseLost:
            # It is for the process that has the run now to publish it.
            self._waiting.drop(path)
            return
        except NoUsableCheckpoint as error:
            await self._give_up(publication, str(error))
        except ExportRefused as error:
            if self._exported(path):
                self._failed(publication, error, refused=True)  # the hub's word may change
            else:
                await self._give_up(publication, str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is: training continues, and it is tried again
            self._failed(publication, error)
        else:
            await self._succeeded(publication, manifest, done)

    async def _export(self, publication: Publication) -> Manifest:
        """Have it in its folder; a recovery that begins takes what that has at the service.

        Raises:
            _Interrupted: A recovery has begun.
            TinkerRecoveryError: It could not be exported.
        """
        in_a_session, first = False, not self._exported(publication.path)

        def progress(now: ExportProgress) -> None:
            nonlocal in_a_session
            in_a_session = now.phase in _IN_A_SESSION

        manifest: Manifest | None = None
        failure: Exception | None = None
        async with anyio.create_task_group() as group:

            async def give_way() -> None:
                before = self._recovered()
                while True:
                    await anyio.sleep(LOOK_S)
                    # One may be over between two looks, and what it met may have hit the export.
                    if in_a_session and (self._recovering() or self._recovered() != before):
                        group.cancel_scope.cancel()

            group.start_soon(give_way)
            try:
                manifest = await self._export_into(publication, progress)
            except Exception as error:  # noqa: BLE001 - raised below, outside the group, which would wrap it
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if manifest is None:
            raise _Interrupted
        if first:
            self._emit(
                names.EVENT_CHECKPOINT_EXPORTED,
                publication,
                f"exported {publication.path} as {manifest.format}, to be published in "
                f"{publication.repository}",
            )
        return manifest

    async def _export_into(self, publication: Publication, progress: Progress) -> Manifest:
        endpoint = self._collaborators.reader.http.endpoint
        limits = ReplyLimits.of(self._collaborators.policy)
        async with Exporter(endpoint, reply_limits=limits) as exporter:
            return await exporter.export(
                CheckpointFacts.of(publication),
                self._place(publication.path),
                cast("Format", publication.format),
                progress=progress,
            )

    def _exported(self, path: str) -> bool:
        try:
            manifest = Manifest.of_folder(self._place(path))
        except ExportRefused:
            return False
        return manifest is not None and manifest.is_whole(self._place(path))

    def _place(self, path: str) -> Path:
        """The folder of one export."""
        if self._folder is None:
            self._folder = self._temporary = Path(tempfile.mkdtemp(prefix="tinker-recovery-"))
        return place_of(self._folder, path)

    def _remove(self, path: str) -> None:
        remove(self._place(path))

    async def _succeeded(
        self, publication: Publication, manifest: Manifest, done: Published
    ) -> None:
        how = "was there already" if done.commit is None else f"commit {done.commit[:8]}"
        await self._end(publication)
        self._emit(
            names.EVENT_CHECKPOINT_PUBLISHED,
            publication,
            f"published {publication.path} in {done.repository}, {how}: {manifest.digest[:12]}",
        )

    async def _give_up(self, publication: Publication, why: str) -> None:
        await self._end(publication)
        self._emit(
            names.EVENT_PUBLISH_FAILED,
            publication,
            f"{publication.path} is not published, and not tried again: {why}",
        )

    async def _end(self, publication: Publication) -> None:
        """It is done with: neither to be kept nor to be published any more."""
        lineage, path = publication.lineage, publication.path
        before = self._done.get(lineage, Done())
        mode: Literal["min", "max"] = "max" if publication.mode == "max" else "min"
        done = self._done[lineage] = before.and_also(_candidate(publication), mode)
        self._waiting.drop(path)
        try:
            await self._notebook.end_publication(path, lineage, write_done(done))
        except JournalError as error:
            logger.warning("that %s was published could not be written down: %s", path, error)
        await anyio.to_thread.run_sync(self._remove, path)

    def _delay(self, path: str) -> float:
        growth = 2.0 ** min(self._waiting.failures(path), 10)
        return min(FIRST_DELAY_S * growth, MOST_DELAY_S) * (1 + 0.2 * self._clock.random())

    def _failed(self, publication: Publication, error: Exception, *, refused: bool = False) -> None:
        if publication.path not in self._waiting:
            return  # another took its place meanwhile
        delay_s = MOST_DELAY_S if refused else self._delay(publication.path)
        said = str(error) or repr(error)
        repeated = self._waiting.note_failure(publication.path, said, self._clock.wall() + delay_s)
        self._emit(
            names.EVENT_PUBLISH_FAILED,
            publication,
            f"{publication.path} is not published yet, and is tried again in {delay_s:.0f} s: "
            f"{said}",
            repeated=repeated,
        )

    def _emit(
        self, name: str, publication: Publication, message: str, *, repeated: bool = False
    ) -> None:
        fields: dict[str, str | int] = {names.CHECKPOINT_PATH: publication.path}
        if publication.step is not None:
            fields[names.CHECKPOINT_STEP] = publication.step
        self._events.emit(name, publication.run, message, fields, repeated=repeated)


def _candidate(publication: Publication) -> Candidate:
    return Candidate(publication.path, publication.step or 0, publication.value)
