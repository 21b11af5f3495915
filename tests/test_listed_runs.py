"""What is said of the runs of one name, to choose from: by saves made up here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made import NOW, path
from tinker import types

from tinker_recovery import AmbiguousRun
from tinker_recovery.checkpoints import checkpoint_metadata
from tinker_recovery.recovery.discovery import find_at_service
from tinker_recovery.service import StatusReader
from tinker_recovery.service.metadata import ServiceMetadata

LATER = NOW + timedelta(hours=1)


class Service:
    """It lists what was saved, in the order in which it was put in."""

    def __init__(self) -> None:
        self.metadata = ServiceMetadata()
        self.listed: list[types.Checkpoint] = []

    def save(self, step: int, lineage: str, time: datetime, **facts: Any) -> None:
        run = f"{lineage}:train:0"
        said = checkpoint_metadata(
            step=step,
            lineage=lineage,
            attempt=lineage,
            parent=None,
            saved_by="user",
            run_name="r",
            **facts,
        )
        self.listed.append(
            types.Checkpoint(
                checkpoint_id=f"weights/{step}",
                checkpoint_type="training",
                time=time,
                tinker_path=path(run, step),
                user_metadata=said,
            )
        )

    async def every_checkpoint(self) -> AsyncIterator[types.Checkpoint]:
        for each in self.listed:
            yield each

    async def run(self, run_id: str) -> Any:
        assert run_id
        return SimpleNamespace(base_model="m", lora_rank=8)

    async def run_finished(self, run_id: str) -> None:
        assert run_id

    async def choices(self) -> list[str]:
        """The lines to choose from, for a person."""
        with pytest.raises(AmbiguousRun) as raised:
            await find_at_service(cast("StatusReader", self), "r", known=())
        return str(raised.value).splitlines()[1:]


@pytest.mark.parametrize("swapped", [False, True])
async def test_of_two_saves_of_one_moment_the_further_one_says_how_a_run_ended(
    *, swapped: bool
) -> None:
    service = Service()
    service.save(4, "one", NOW)
    service.save(5, "one", NOW, ended=True)
    service.save(3, "two", LATER)
    if swapped:
        service.listed.reverse()
    two, one = await service.choices()
    assert 'lineage="two": m, step 3' in two
    assert two.endswith("not known to be finished")
    assert 'lineage="one": m, step 5' in one
    assert one.endswith(", finished")


@pytest.mark.parametrize("swapped", [False, True])
async def test_a_run_is_as_far_as_its_furthest_save_and_as_new_as_its_newest(
    *, swapped: bool
) -> None:
    service = Service()
    service.save(9, "one", NOW, ended=True)
    service.save(2, "one", LATER + timedelta(seconds=1))
    service.save(3, "two", LATER)
    if swapped:
        service.listed.reverse()
    one, two = await service.choices()
    assert 'lineage="one": m, step 9, saved 2026-01-02 04:04:06' in one
    assert one.endswith("not known to be finished")
    assert 'lineage="two"' in two
