"""A name for a run that has none, where ``tinker-recovery run`` restarts its script.

A run without a name would begin again with each restart. The runner gives its script a name in
:data:`VARIABLE`, for the process that it starts itself: one further down may be one of many that
train at once. What it is made of besides is how the run starts, so that a script with several
runs finds each again; of those that start alike, the order in which they do.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections import Counter
from dataclasses import replace

from tinker_recovery.errors import UsageError
from tinker_recovery.run.options import StartPlan
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

VARIABLE = "TINKER_RECOVERY_RUN"
"""``PID:NAME``: the runner's process, and the name that it gives; see ``cli/run.py``."""

_begun: Counter[str] = Counter()
"""How many unnamed runs of this process have started in the same way."""


def named(plan: StartPlan, *, resumes: bool) -> tuple[StartPlan, str]:
    """How a run starts, with the name that it has or is given.

    One that the runner has named is trained on if it has finished: when its script is restarted for
    a later run, there is nothing to do for it, and nothing to refuse.

    Args:
        plan: How it starts.
        resumes: Whether a run is found again by its name, in a journal.

    Raises:
        UsageError: It is to be trained on, and cannot be found again.
    """
    if plan.extend and not resumes:
        raise UsageError(
            "extend=True trains a finished run on, and none is found again with journal=None or "
            "enabled=False: leave one of them out"
        )
    if plan.name is not None:
        return plan, plan.name
    runner, _, given = os.environ.get(VARIABLE, "").partition(":")
    own = f"run-{secrets.token_hex(3)}"
    if not (given and resumes):
        return plan, own
    if runner != str(os.getppid()):
        logger.warning(
            "run %s: it has no name=, and its process is not the one that `tinker-recovery run` "
            'has started, so a restart begins it again: give it one, name="..."',
            own,
        )
        return plan, own
    start = {key: value for key, value in plan.described.items() if key != "seed"}
    start |= {} if plan.seed_is_drawn else {"seed": plan.described.get("seed")}
    start |= {"start_step": plan.start_step}
    digest = hashlib.sha256(json.dumps(start, sort_keys=True, default=str).encode()).hexdigest()
    name = f"{given}-{digest[:6]}"
    _begun[name] += 1
    if _begun[name] > 1:
        name += f"-{_begun[name]}"
    return replace(plan, name=name, extend=True), name
