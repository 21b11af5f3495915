"""Loops that end by no ordinary error: their job fails, and the worker and its other jobs go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from loops import MODEL, SEED, quick
from loops_of_jobs import exits, exits_in_a_thread, is_cancelled_inside, train

from tinker_recovery.jobs import JobFailed, Jobs
from tinker_recovery.testing import LocalTinker

START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("odd", "args", "kind"),
    [
        (is_cancelled_inside, {"steps": 2}, "CancelledError"),
        (exits, {"steps": 2}, "SystemExit: there is no data set"),
        (exits_in_a_thread, {}, "SystemExit: 2"),
    ],
    ids=["cancelled inside", "exits", "exits in a thread"],
)
async def test_a_loop_that_is_cancelled_by_itself_or_exits_has_failed_and_the_worker_goes_on(
    local: LocalTinker, odd: Callable[..., Any], args: dict[str, Any], kind: str
) -> None:
    del local
    with anyio.fail_after(60):
        async with Jobs(policy=quick(), starts_per_s=50.0) as jobs:
            handle = await jobs.submit(odd, name="odd", args=args, **START)
            with pytest.raises(JobFailed, match=kind) as failed:
                await handle.result()
            assert failed.value.tries == 1
            other = await jobs.submit(train, name="other", args={"steps": 2}, **START)
            assert (await other.result()).step == 2
