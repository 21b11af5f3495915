"""A run that is refused before it has trained is failed from then on, whatever its process does."""

from __future__ import annotations

import functools

import anyio
import pytest
from loops import MODEL, policy, train
from named_runs import NAMED

from tinker_recovery import NoUsableCheckpoint, Supervisor
from tinker_recovery.journal import default_path
from tinker_recovery.journal.reading import RunView, read_run
from tinker_recovery.testing import LocalTinker

LOOP = functools.partial(train, steps=3)
UNLISTED = "tinker://11111111-2222-4333-8444-555555555555:train:0/weights/step-00000010-x"


def _stands(name: str) -> RunView:
    run = read_run(default_path(), name)
    assert run is not None
    return run


async def test_a_run_whose_checkpoint_is_not_listed_is_failed_while_its_process_goes_on(
    local: LocalTinker,
) -> None:
    del local
    async with Supervisor(policy()) as supervisor:
        with pytest.raises(NoUsableCheckpoint):
            await supervisor.run(LOOP, name="refused", from_checkpoint=UNLISTED)
        run = _stands("refused")
        assert (run.display_state, run.holder) == ("failed", None)
        assert run.detail.startswith("NoUsableCheckpoint: ")
        # The name is not used up by that.
        await supervisor.run(LOOP, name="refused", base_model=MODEL, rank=8)
    assert _stands("refused").state == "finished"


async def test_a_refused_start_leaves_a_run_that_has_trained_as_it_was(local: LocalTinker) -> None:
    del local

    async def breaks(attempt: object) -> None:
        del attempt
        raise ZeroDivisionError

    async with Supervisor(policy()) as supervisor:
        with pytest.raises(ZeroDivisionError):
            await supervisor.run(breaks, **NAMED)
    before = _stands(NAMED["name"])
    async with Supervisor(policy()) as supervisor:
        with pytest.raises(Exception, match="is not how run"):
            await supervisor.run(LOOP, **{**NAMED, "rank": 16})
    after = _stands(NAMED["name"])
    assert (
        (after.state, after.detail)
        == (before.state, before.detail)
        == (
            "failed",
            "ZeroDivisionError: ",
        )
    )


async def test_a_start_that_is_cancelled_before_it_is_found_out_is_stopped(
    local: LocalTinker,
) -> None:
    local.begin_outage(status=503)  # so that it waits for an answer
    async with Supervisor(policy(), lease="journal") as supervisor:
        with anyio.move_on_after(2):
            await supervisor.run(LOOP, name="left", from_checkpoint=UNLISTED)
        run = _stands("left")
        assert (run.display_state, run.holder) == ("stopped", None)
    local.end_outage()
