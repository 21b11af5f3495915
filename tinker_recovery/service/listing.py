"""Checkpoints as the service lists them: of one Tinker run, of all of a run, or one by its path."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import anyio

from tinker_recovery.checkpoints import CheckpointRecord, Listed, run_id_of, run_id_unchecked
from tinker_recovery.errors import NoUsableCheckpoint, StatusError
from tinker_recovery.service.status import StatusReader

AT_ONCE = 8
"""Listings asked for side by side."""

LATE_S = 600.0
"""Seconds within which a service has executed what an attempt that is over had submitted."""


async def list_checkpoints(reader: StatusReader, run_id: str) -> list[Listed]:
    """The training checkpoints of one Tinker run, those with unreadable metadata included."""
    return [
        Listed.read(listed)
        for listed in await reader.checkpoints(run_id)
        if listed.checkpoint_type == "training"
    ]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One listing, as it is remembered.

    Attributes:
        listed: What was listed.
        print: Equal for equal listings.
        since: The service's time since which it has been the same; None after the first time.
        until: The service's time at which the first of them expires.
    """

    listed: Sequence[Listed]
    print: int
    since: float | None
    until: float


class Listings:
    """The newest listing of each Tinker run of a run.

    A Tinker run that another has followed saves nothing more. So it is listed until two listings in
    a row were equal, as a save may be listed late, and remembered from then on: until one of its
    checkpoints expires, or :meth:`forget`. What another process deletes, publishes or renews there
    is not noticed, so what is deleted or relied on is to be listed again first.
    """

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._seen

    def due(
        self, run_ids: Sequence[str], unsettled: Iterable[str], *, now_s: float
    ) -> Collection[str]:
        """Those to be listed again.

        Args:
            run_ids: All Tinker runs of the run, the one that trains last.
            unsettled: Paths that a save of the others may still write to: for :data:`LATE_S`.
            now_s: The service's time.
        """
        late = {run_id_unchecked(path) for path in unsettled}
        return {
            run_id
            for run_id in run_ids
            if run_id == run_ids[-1]
            or (seen := self._seen.get(run_id)) is None
            or seen.since is None
            or (run_id in late and now_s < seen.since + LATE_S)
            or seen.until <= now_s
        }

    async def update(self, reader: StatusReader, run_ids: Collection[str]) -> None:
        """List these, :data:`AT_ONCE` side by side.

        Raises:
            StatusError: One of them could not be read; some of the others were, and are remembered.
        """
        failed: list[StatusError] = []
        places = anyio.Semaphore(AT_ONCE)

        async def update(run_id: str) -> None:
            async with places:
                if not failed:
                    try:
                        self._note(
                            run_id, await list_checkpoints(reader, run_id), reader.service_now()
                        )
                    except StatusError as error:
                        failed.append(error)

        async with anyio.create_task_group() as group:
            for run_id in run_ids:
                group.start_soon(update, run_id)
        if failed:
            raise failed[0]

    def _note(self, run_id: str, listed: Sequence[Listed], now_s: float) -> None:
        said = hash(tuple(repr(each.source) for each in listed))
        before = self._seen.get(run_id)
        same = before is not None and before.print == said
        expiries = [each.expires_at.timestamp() for each in listed if each.expires_at is not None]
        self._seen[run_id] = _Seen(
            # Of what was read, the record says all that the service's entry does.
            [replace(each, source=None) if each.record else each for each in listed],
            said,
            (before and before.since) or now_s if same else None,
            min(expiries, default=math.inf),
        )

    def of(self, run_ids: Iterable[str]) -> list[Listed]:
        """What was listed of these, newest listing of each."""
        return [each for run_id in run_ids for each in self._seen[run_id].listed]

    def prints(self, run_ids: Iterable[str]) -> list[int]:
        """Equal for the same Tinker runs as long as what is listed of them is."""
        return [self._seen[run_id].print for run_id in run_ids]

    def forget(self, run_id: str) -> None:
        """Something was changed there."""
        self._seen.pop(run_id, None)


async def is_as_listed(reader: StatusReader, listed: Listed) -> bool:
    """Whether no other save has taken a checkpoint's place since it was listed.

    To be asked once it was loaded, which may have read that other: perhaps a save of a process that
    is dead by now, as the service still executes what it had submitted.

    Raises:
        StatusError: The listing cannot be read.
    """
    if not listed.rewritable:
        return True
    now = await list_checkpoints(reader, run_id_unchecked(listed.path))
    return any(each.path == listed.path and each.has_content_of(listed) for each in now)


async def find_checkpoint(reader: StatusReader, path: str) -> CheckpointRecord:
    """One checkpoint by its path.

    Raises:
        InvalidMetadata: Its metadata cannot be read.
        NoUsableCheckpoint: It is not listed, or its metadata has no step.
        StatusError: The listing cannot be read.
    """
    for listed in await reader.checkpoints(run_id_of(path)):
        if listed.tinker_path == path:
            record = CheckpointRecord.from_listing(listed)
            if record is None:
                raise NoUsableCheckpoint(
                    f"checkpoint {path} does not say how many optimizer steps it contains: it was "
                    "not saved by a supervised client, so the loop cannot be rewound to it"
                )
            return record
    raise NoUsableCheckpoint(f"checkpoint {path} is not listed by the service")
