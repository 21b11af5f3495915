"""A worker of the jobs benchmark, on a machine and with a journal of its own.

python _jobs_worker.py MACHINE DATABASE HOW_MANY STARTS_PER_S LIMIT_S
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile

import _fencing_machine as machine
from _jobs_loop import POLICY

from tinker_recovery import LeaseLost
from tinker_recovery.jobs import Jobs
from tinker_recovery.jobs import jobs as entered
from tinker_recovery.service import claims

SETTLE_S = 0.1


async def main() -> None:
    """Work until stopped."""
    name, database, at_once, starts, limit_s = sys.argv[1:]
    logging.basicConfig(level=logging.ERROR)
    machine.BEAT_S = float(limit_s) / 6
    machine.be_on_machine(name)
    machine.hurry(SETTLE_S)
    claims.LOOK_S = entered.LOOK_S = float(limit_s) / 20
    with tempfile.TemporaryDirectory() as state:
        os.environ["TINKER_RECOVERY_STATE_DIR"] = state
        while True:
            try:
                async with Jobs(
                    database, policy=POLICY, concurrency=int(at_once), starts_per_s=float(starts)
                ):
                    await asyncio.Future()
            except LeaseLost as error:
                # Starved on a busy machine; what runs workers starts them again.
                print(f"{name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
