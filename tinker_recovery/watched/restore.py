"""The order in which the checkpoints of a watched run are tried: newest stored first.

All there is to go by is the service's list, and its checkpoints need not be ours. Metadata is read
where there is some; the order is that in which the service stored them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tinker import types

from tinker_recovery.checkpoints import Listed
from tinker_recovery.recovery.selection import ServiceTime
from tinker_recovery.service import StatusReader
from tinker_recovery.service.listing import list_checkpoints
from tinker_recovery.telemetry import names, phase

if TYPE_CHECKING:
    from tinker_recovery.watched.watch import WatchedRun


class NewestStored:
    """The checkpoints of the newest Tinker run that has one to use, the newest stored first."""

    def __init__(self, run: WatchedRun, reader: StatusReader, waiting: ServiceTime) -> None:
        self._run = run
        self._reader = reader
        self._waiting = waiting
        self.doubtful: dict[str, list[int]] = {}  # it refuses what may be of a fault

    def progress(self, chosen: Listed) -> int:
        """When it was stored; see :func:`progress_of`."""
        return 0 if chosen.source is None else progress_of(chosen.source)

    async def lists(self, refused: dict[str, str]) -> AsyncGenerator[Sequence[Listed]]:
        """One list for each Tinker run it has been, the newest first.

        What was stored after the run was last seen to be well may hold the fault's damage.

        Raises:
            StatusError: A listing could not be read.
        """
        for run_id in reversed(self._run.run_ids):
            with phase(names.SPAN_SELECT, {names.RUN_ID: run_id}) as span, self._waiting:
                listed = await list_checkpoints(self._reader, run_id)
                span.set_attribute(names.CHECKPOINTS_FOUND, len(listed))
            until = self._run.trusted_until(run_id)
            found, late = newest_stored(listed, until)
            if until is not None:
                refused |= {each.path: _too_late(each, until) for each in late}
            yield found


def newest_stored(
    listed: Sequence[Listed], until: float | None
) -> tuple[list[Listed], list[Listed]]:
    """What may be tried, the newest stored first, and what was stored too late: a pure decision.

    Args:
        listed: The training checkpoints of one Tinker run, as the service lists them.
        until: Seconds since the epoch at which the run was last seen to be well; None if that is
            not known, and then nothing is too late.
    """
    newest_first = sorted(listed, key=_stored_at, reverse=True)
    late = [each for each in newest_first if until is not None and _stored_at(each) > until]
    return newest_first[len(late) :], late


def progress_of(checkpoint: types.Checkpoint) -> int:
    """A number that grows with each checkpoint of a run, whether or not it has metadata of ours."""
    return int(checkpoint.time.timestamp() * 1e3)


def _stored_at(listed: Listed) -> float:
    return 0.0 if listed.stored_at is None else listed.stored_at.timestamp()


def _too_late(listed: Listed, until: float) -> str:
    well = datetime.fromtimestamp(until, UTC)
    return (
        f"it was stored at {listed.stored_at:%Y-%m-%d %H:%M:%S}, after the run was last seen to be "
        f"well at {well:%Y-%m-%d %H:%M:%S}; recover_from_checkpoint() takes it all the same"
    )
