"""Discovery: a run that no journal here knows, put together from its checkpoints' metadata.

Another machine, a folder that was lost, a damaged journal that was moved away: the service still
lists what was saved, and each checkpoint names the run, its lineage, its attempt, its parent and
its step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import anyio

from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.checkpoints.contradiction import contradiction
from tinker_recovery.checkpoints.naming import lineage_by_mark, mark_of
from tinker_recovery.clock import Reminder
from tinker_recovery.errors import (
    AmbiguousRun,
    ContradictoryCheckpoints,
    DeadlineExceeded,
    InvalidMetadata,
    StatusError,
    StatusRefused,
    StatusUnavailable,
)
from tinker_recovery.journal import StoredAttempt, StoredRun
from tinker_recovery.service import StatusReader
from tinker_recovery.service.missing_routes import NO_SUCH_ROUTE, say_no_search
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

QUIET_S = 30.0
"""A run whose session was not finished counts as left once it has asked nothing for this long."""

NEW = "new"
"""As ``lineage=``: begin another run of that name, whatever the service has."""

MOST_LISTED = 10
"""How many runs of a name are listed to choose from."""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run that the service has, and this journal has not.

    Attributes:
        stored: What its checkpoints say of it.
        said: What the service says it was begun with.
    """

    stored: StoredRun
    said: Mapping[str, Any]


async def find_at_service(
    reader: StatusReader, name: str, *, known: Collection[str], lineage: str | None = None
) -> FoundRun | None:
    """The run of this name that has checkpoints; None if there is none.

    Reads the list of all checkpoints, a hundred to a page.

    Args:
        reader: Where to look.
        name: The run's name.
        known: Lineages that the journal knows, and so are not looked for.
        lineage: (The beginning of) the one that is meant; None for the only one.

    Raises:
        AmbiguousRun: There are several and none was chosen, or the one chosen is not there.
        ContradictoryCheckpoints: Some of its checkpoints cannot be its own.
        StatusError: The list could not be read.
    """
    named, steps = await _listed(reader, name, known)
    wanted = [each for each in named if each.startswith(lineage or "")]
    if len(wanted) != 1:
        if not named and lineage is None:
            return None
        raise await _ambiguous(reader, name, named, lineage)
    stored = await _with_its_end(reader, put_together(named[wanted[0]], steps))
    said = await reader.run(stored.attempts[-1].run_id)
    return FoundRun(stored, {"base_model": said.base_model, "rank": said.lora_rank})


async def find_further(reader: StatusReader, stored: StoredRun, name: str) -> StoredRun:
    """A run that the journal knows, with what processes with other journals did of it since.

    Reads the list of all checkpoints, as :func:`find_at_service`.

    Returns:
        What :func:`with_further` makes of it, ``finished`` if the service says that it is.

    Raises:
        ContradictoryCheckpoints: Some of its checkpoints cannot be its own.
        StatusError: The list could not be read.
    """
    reader.metadata.know(stored.lineage)
    for each in stored.attempts:
        reader.metadata.know_attempt(each.attempt, each.parent)
    named, steps = await _listed(reader, name, ())
    own = named.get(stored.lineage)
    found = stored if own is None else with_further(stored, put_together(own, steps))
    return await _with_its_end(reader, found)


async def as_trained_since(reader: StatusReader, stored: StoredRun, name: str) -> StoredRun:
    """The same where it can be seen: a list that the service refuses adds nothing.

    Raises:
        ContradictoryCheckpoints: Some of its checkpoints cannot be its own.
        StatusUnavailable: The list could not be read.
    """
    if not stored.attempts:
        return stored
    try:
        found = await find_further(reader, stored, name)
    except StatusRefused as error:
        logger.debug("what was trained of run %s since cannot be seen: %s", name, error)
        return stored
    return found if len(found.attempts) > len(stored.attempts) else stored


def with_further(stored: StoredRun, found: StoredRun) -> StoredRun:
    """What the journal knows of a run, and behind it what the service alone knows: a pure decision.

    Only attempts that have saved after all that the journal knows: one before, which was not
    written down, is no part of where the run stands.
    """
    known = {each.attempt for each in stored.attempts}
    newest = takewhile(lambda each: each.attempt not in known, reversed(found.attempts))
    further = tuple(newest)[::-1]
    if not further:
        return stored
    # Its checkpoints are those that were found: whoever went on may have deleted what was there.
    return replace(
        found,
        origin=stored.origin,
        start_step=stored.start_step,
        attempts=stored.attempts + further,
        leftovers=stored.leftovers,
    )


async def _with_its_end(reader: StatusReader, stored: StoredRun) -> StoredRun:
    """The same, finished or not by the end of its last session, if the service says that."""
    finished = await reader.run_finished(stored.attempts[-1].run_id)
    return stored if finished is None else replace(stored, state="finished" if finished else "lost")


async def _listed(
    reader: StatusReader, name: str, known: Collection[str]
) -> tuple[dict[str, list[CheckpointRecord]], dict[str, int]]:
    """The checkpoints of each lineage of a name, in no order; the step of every checkpoint."""
    # Where the service keeps no metadata, these are recognised in the names of saves.
    reader.metadata.know_name(name)
    for lineage in known:
        reader.metadata.know(lineage)
    records: list[CheckpointRecord] = []
    try:
        async for listed in reader.every_checkpoint():
            try:
                record = CheckpointRecord.from_listing(listed)
            except InvalidMetadata:
                continue
            if record is not None:
                records.append(record)
    except StatusError as error:
        if error.status_code not in NO_SUCH_ROUTE:
            raise
        return {}, {}  # a service without that list: nothing can be found there
    # Of a save that was stored without its metadata no more than the lineage's mark may be known.
    whole = {lineage_by_mark(mark_of(each.lineage)): each.lineage for each in records}
    by_lineage: dict[str, list[CheckpointRecord]] = {}
    for record in records:
        by_lineage.setdefault(whole.get(record.lineage, record.lineage), []).append(record)
    return {
        lineage: own
        for lineage, own in by_lineage.items()
        if lineage not in known and any(record.run_name == name for record in own)
    }, {record.path: record.step for record in records}


async def _ambiguous(
    reader: StatusReader,
    name: str,
    named: Mapping[str, Sequence[CheckpointRecord]],
    lineage: str | None,
) -> AmbiguousRun:
    """What to choose from, the newest first."""
    # As where a run is put together: of two of one moment, the one with more steps is newer.
    newest = {
        lineage: max(own, key=lambda record: (record.time, record.step))
        for lineage, own in named.items()
    }
    order = sorted(named, key=lambda each: newest[each].time, reverse=True)
    lines = [
        await _described(reader, each, newest[each], max(record.step for record in named[each]))
        for each in order[:MOST_LISTED]
    ]
    if len(order) > MOST_LISTED:
        lines.append(f"and {len(order) - MOST_LISTED} older ones")
    if lineage is None:
        said = (
            f"run {name!r} is not in this journal, and the service has {len(order)} runs of that "
            "name. Say which to resume"
        )
    else:
        several = any(each.startswith(lineage) for each in order)
        which, has = ("several runs", "have") if several else ("no run", "has")
        said = (
            f"{which} of the name {name!r} {has} the lineage {lineage!r} at the service, leaving "
            "out those that this journal knows. Say which to resume"
        )
    hint = f'{said}, with lineage= as listed, or begin another with lineage="{NEW}"'
    return AmbiguousRun("\n".join([hint, *lines]), run=name, lineages=order)


async def _described(
    reader: StatusReader, lineage: str, newest: CheckpointRecord, step: int
) -> str:
    """One line of what there is to choose from."""
    try:
        model = (await reader.run(newest.run_id)).base_model
        finished = await reader.run_finished(newest.run_id)
        finished = finished if finished is not None else newest.ended or None
    except StatusRefused as error:
        model, finished = f"(its Tinker run {newest.run_id} cannot be read: {error})", None
    end = {True: "finished", False: "not finished", None: "not known to be finished"}[finished]
    saved = newest.time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return f'  lineage="{lineage}": {model}, step {step}, saved {saved}, {end}'


def put_together(own: Iterable[CheckpointRecord], steps: Mapping[str, int]) -> StoredRun:
    """A run from its checkpoints: a pure decision.

    Args:
        own: All of one lineage; at least one.
        steps: The step of every checkpoint listed, by path.

    Raises:
        ContradictoryCheckpoints: They cannot all be of one run.
    """
    own = list(own)
    found = contradiction(own)
    if found is not None:
        raise ContradictoryCheckpoints(
            f"{' and '.join(found.paths)} {'name' if len(found.paths) > 1 else 'names'} run "
            f"{own[0].run_name or own[0].lineage!r} and cannot be trusted to be of it: "
            f"{found.reason}. Nothing is resumed from a run that holds such checkpoints: delete "
            "what is not its own, start from a checkpoint that you know to be good "
            f'(from_checkpoint=, another name), or begin another run beside it (lineage="{NEW}")',
            paths=found.paths,
        )
    own.sort(key=lambda record: (record.time, record.step))
    origin = dict(next((record.origin for record in reversed(own) if record.origin), {}))
    begun, root = origin.pop("start_step", None), origin.get("from_checkpoint")
    by_attempt: dict[tuple[str, str], list[CheckpointRecord]] = {}
    for record in own:
        by_attempt.setdefault((record.run_id, record.attempt), []).append(record)
    attempts = []
    for (run_id, attempt), records in by_attempt.items():
        parent = records[0].parent
        saved = sorted({record.step for record in records})
        if begun is not None and parent in (None, root):
            start_step = begun  # which the user may have given
        else:
            # Of a parent that is gone nothing older is relied on.
            start_step = 0 if parent is None else steps.get(parent, 0)
        attempts.append(
            StoredAttempt(
                attempt=attempt,
                run_id=run_id,
                start_step=start_step,
                parent=parent,
                ended=True,
                # Further only by the word of its own checkpoints.
                sound_step=start_step,
                # If the service calls it corrupted, it is not known since when.
                polled_step=saved[-2] if len(saved) > 1 else 0,
                trusted_to=None,
                faulty=False,
            )
        )
    last = next(reversed(by_attempt.values()))
    return StoredRun(
        lineage=last[-1].lineage,
        origin=origin,
        state="finished" if last[-1].ended else "lost",
        detail="",
        start_step=attempts[0].start_step if begun is None else begun,
        step=last[-1].step,
        attempts=tuple(attempts),
        leftovers=(),
        checkpoints=tuple((record.path, record.step) for record in last),
    )


async def _session_over(reader: StatusReader, run_id: str) -> bool | None:
    """Whether the session of a Tinker run is over; None if the service does not say."""
    try:
        return await reader.session_over(run_id)
    except StatusError as error:
        if error.status_code in NO_SUCH_ROUTE:
            say_no_search(reader.http.endpoint.base_url)
        logger.debug("the sessions cannot be searched; the requests of %s tell", run_id)
        return None


async def until_quiet(
    reader: StatusReader,
    name: str,
    run_id: str,
    *,
    quiet_s: float = QUIET_S,
    max_wait_s: float,
    monotonic: Callable[[], float],
) -> bool:
    """Wait until no process trains a run that only the service knows: no lease can tell.

    A session that was finished, or failed, is over; one that is active is not, however long it asks
    nothing. Where the service does not say, its last request has to have been the last one for
    ``quiet_s`` seconds. What goes on for longer than ``max_wait_s`` is not waited for.

    Returns:
        Whether it had to wait.

    Raises:
        DeadlineExceeded: The run is still being trained.
        StatusError: The run cannot be read.
    """
    over = await _session_over(reader, run_id)
    if over:
        return False
    seen, since = None, monotonic()
    began, reminder = since, Reminder(at_once=True)
    while True:
        try:
            said = (await reader.run(run_id)).last_request_time
        except StatusUnavailable:
            if monotonic() - began > max_wait_s:
                raise
            said = None  # nothing is known of this moment, so it begins again
        if over is False or said is None or said != seen:
            seen, since = said, monotonic()
            if since - began > max_wait_s:
                raise DeadlineExceeded(
                    f"waiting until no other process trains run {name!r}, whose Tinker run "
                    f"{run_id} is still asked things or has an active session (end that process, "
                    "raise max_wait_s, choose "
                    f'another name, or begin another run beside it with lineage="{NEW}")',
                    max_wait_s,
                )
        if monotonic() - since >= quiet_s:
            return True
        if reminder.is_due(monotonic() - began):
            logger.warning(
                "run %s was trained by a process that does not write this journal, in Tinker run "
                "%s; it continues here once the session of that is over, or, where the service "
                "does not say, once it has been asked nothing for %g s",
                name,
                run_id,
                quiet_s,
            )
        await anyio.sleep(min(1.0, quiet_s / 5))
        over = await _session_over(reader, run_id)
        if over:
            return True
