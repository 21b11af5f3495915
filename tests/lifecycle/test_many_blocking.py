"""As many loops that block as there are runs: none waits for the thread of another."""

from __future__ import annotations

import threading

import anyio
import anyio.to_thread

from tinker_recovery.run.blocking import in_worker_thread

LOOPS = 45
"""More than the 40 worker threads that anyio gives a process."""


async def test_every_loop_that_blocks_begins_and_leaves_threads_for_all_else() -> None:
    together = threading.Barrier(LOOPS + 1, timeout=20.0)
    async with anyio.create_task_group() as group:
        for _ in range(LOOPS):
            group.start_soon(in_worker_thread, together.wait)
        # Closing a client takes one of those that all share.
        await anyio.to_thread.run_sync(together.wait)
