"""Discovery: a run that no journal here knows, put together from its checkpoints' metadata.

Another machine, a folder that was lost, a damaged journal that was moved away: the service still
lists what was saved, and each checkpoint names the run, its lineage, its attempt, its parent and
its step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import anyio

from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.errors import InvalidMetadata, StatusError, StatusUnavailable
from tinker_recovery.journal import StoredAttempt, StoredRun
from tinker_recovery.service import StatusReader
from tinker_recovery.service.missing_routes import NO_SUCH_ROUTE, say_no_search
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

QUIET_S = 30.0
"""A run whose session was not finished counts as left once it has asked nothing for this long."""


async def find_at_service(
    reader: StatusReader, name: str, *, known: Collection[str]
) -> tuple[StoredRun, Mapping[str, Any]] | None:
    """A run of this name with checkpoints, and what the service says it was begun with; or None.

    Reads the list of all checkpoints, a hundred to a page.

    Args:
        reader: Where to look.
        name: The run's name.
        known: Lineages that the journal knows, and so are not looked for.

    Raises:
        StatusError: The list could not be read.
    """
    # Where the service keeps no metadata, these are recognised in the names of saves.
    reader.metadata.know_name(name)
    for lineage in known:
        reader.metadata.know(lineage)
    named: list[CheckpointRecord] = []
    steps: dict[str, int] = {}
    try:
        async for listed in reader.every_checkpoint():
            try:
                record = CheckpointRecord.from_listing(listed)
            except InvalidMetadata:
                continue
            if record is not None:
                steps[record.path] = record.step
                if record.run_name == name and record.lineage not in known:
                    named.append(record)
    except StatusError as error:
        if error.status_code not in NO_SUCH_ROUTE:
            raise
        return None  # a service without that list: nothing can be found there
    if not named:
        return None
    newest = max(named, key=lambda record: (record.time, record.step))
    own = [record for record in named if record.lineage == newest.lineage]
    found = put_together(own, steps)
    said = await reader.run(found.attempts[-1].run_id)
    return found, {"base_model": said.base_model, "rank": said.lora_rank}


def put_together(own: Iterable[CheckpointRecord], steps: Mapping[str, int]) -> StoredRun:
    """A run from its checkpoints: a pure decision.

    Args:
        own: All of one lineage; at least one.
        steps: The step of every checkpoint listed, by path.
    """
    by_attempt: dict[tuple[str, str], list[CheckpointRecord]] = {}
    for record in sorted(own, key=lambda record: (record.time, record.step)):
        by_attempt.setdefault((record.run_id, record.attempt), []).append(record)
    attempts = []
    for (run_id, attempt), records in by_attempt.items():
        parent = records[0].parent
        saved = sorted({record.step for record in records})
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
        origin={},
        state="lost",
        detail="",
        start_step=attempts[0].start_step,
        step=last[-1].step,
        attempts=tuple(attempts),
        leftovers=(),
        checkpoints=tuple((record.path, record.step) for record in last),
    )


async def until_quiet(
    reader: StatusReader,
    name: str,
    run_id: str,
    *,
    quiet_s: float = QUIET_S,
    monotonic: Callable[[], float],
) -> None:
    """Wait until no process trains a run that only the service knows: no lease can tell.

    A session that was finished, or failed, is over. Otherwise its last request has to have been the
    last one for ``quiet_s`` seconds.

    Raises:
        StatusError: The run cannot be read.
    """
    try:
        if await reader.session_over(run_id):
            return
    except StatusError as error:
        if error.status_code in NO_SUCH_ROUTE:
            say_no_search(reader.http.endpoint.base_url)
        logger.debug("the sessions cannot be searched; the requests of %s tell", run_id)
    seen, since = None, monotonic()
    warned = False
    while True:
        try:
            said = (await reader.run(run_id)).last_request_time
        except StatusUnavailable:
            said = None  # nothing is known of this moment, so it begins again
        if said is None or said != seen:
            seen, since = said, monotonic()
        if monotonic() - since >= quiet_s:
            return
        if not warned:
            warned = True
            logger.warning(
                "run %s has checkpoints at the service and is not in this journal; it continues "
                "here once Tinker run %s has been asked nothing for %g s",
                name,
                run_id,
                quiet_s,
            )
        await anyio.sleep(min(1.0, quiet_s / 5))
