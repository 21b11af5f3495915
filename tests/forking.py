"""A blocking script whose loop forks, as its own program; the parent trains three steps.

The child leaves as the first argument says: ``exits`` by ``sys.exit``, ``fails`` by an error of the
client, ``returns`` by the end of the script.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from loops import ADAM, MODEL, batch, policy

from tinker_recovery import Attempt, Supervisor, UsageError

LIMIT_S = 20
CODE = 7
NAME = "forking"


def _train(attempt: Attempt, how: str) -> int | None:
    """The exit code of the child, in the parent; None in the child."""
    child = os.fork()
    if child == 0:
        signal.alarm(2 * LIMIT_S)  # it outlives no test
        if how == "exits":
            sys.exit(CODE)
        if how == "fails":
            attempt.client.optim_step(ADAM)
        return None
    code = _code_of(child)
    for step in range(attempt.start_step, 3):
        attempt.client.forward_backward(batch(step), "cross_entropy").result()
        attempt.client.optim_step(ADAM).result()
    return code


def _code_of(child: int) -> int:
    deadline = time.monotonic() + LIMIT_S
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(ended[1])


def main(how: str) -> int:
    """Train; returns what the process exits with."""
    parent = os.getpid()
    try:
        with Supervisor(policy()) as supervisor:
            code = supervisor.run(
                lambda attempt: _train(attempt, how), name=NAME, base_model=MODEL, rank=8
            )
    except UsageError:
        return CODE if os.getpid() != parent else 1
    if os.getpid() != parent:
        return CODE
    return 0 if code == CODE else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
