"""A process that trains blocks of steps on request, with tracing exported or without an SDK.

A process can have only one tracer provider, so each contestant of ``step_overhead.py`` has its own
process. Every line on stdin requests a block; the reply is the seconds that a step of it took.
"""

from __future__ import annotations

import os
import sys

import anyio
import anyio.to_thread
from step_overhead import block, policy

from tinker_recovery import Supervisor
from tinker_recovery.telemetry import configure_tracing


async def main(steps: int, endpoint: str | None) -> None:
    """Serve until stdin is closed."""
    export = None
    if endpoint is not None:
        # Sent while the block runs, so that its cost falls on the block and not on the pause.
        os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "20"
        export = configure_tracing(endpoint, service_name="step-overhead")
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model="bench", rank=8, seed=1):
            async with attempt:
                while await anyio.to_thread.run_sync(sys.stdin.readline):
                    seconds, _ = await block(attempt.client, steps)
                    if export is not None:
                        await anyio.to_thread.run_sync(export.flush)
                    print(seconds, flush=True)
    if export is not None:
        await anyio.to_thread.run_sync(export.shutdown)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
