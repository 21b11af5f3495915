"""Which checkpoints of a run are to be published, and in which order: pure decisions.

Only what is known to be sound is a candidate. Nothing is published twice, and never one with fewer
steps after one with more, so a repository only ever goes forward: a recovery goes back, and what it
trains again was published before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

MOST_WAITING = 8
"""The most checkpoints of a run that wait to be published, as each of them is kept meanwhile."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that is known to be sound.

    Attributes:
        path: Its ``tinker://`` path.
        step: Optimizer steps in it.
        value: The metric that it is judged by; None if it is not known.
    """

    path: str
    step: int
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What was published of a run so far, or given up.

    Attributes:
        step: The most steps of any; -1 for none.
        value: The best metric of any; None for none.
    """

    step: int = -1
    value: float | None = None

    def and_also(self, candidate: Candidate, mode: Literal["min", "max"]) -> Done:
        """With one more."""
        value = candidate.value
        if value is None or (self.value is not None and not is_better(value, self.value, mode)):
            value = self.value
        return Done(max(self.step, candidate.step), value)


@dataclass(frozen=True, slots=True)
class Intentions:
    """What is to wait from now on, by a decision.

    Attributes:
        add: What is to be published besides what waits already, the fewest steps first.
        drop: Paths that wait, and are not to be published any more.
    """

    add: tuple[Candidate, ...] = ()
    drop: tuple[str, ...] = ()


def is_better(value: float, than: float, mode: Literal["min", "max"]) -> bool:
    """Whether a metric is better than another; NaN is better than nothing."""
    if math.isnan(value) or math.isnan(than):
        return not math.isnan(value)
    return value < than if mode == "min" else value > than


def intentions(
    candidates: Iterable[Candidate],
    waiting: Mapping[str, Candidate],
    done: Done,
    *,
    publish: Literal["end", "best", "each"],
    ended: bool,
    mode: Literal["min", "max"] = "min",
) -> Intentions:
    """What else is to be published, and what need not be any more.

    Args:
        candidates: What is known to be sound, in any order.
        waiting: What was decided before and is not published yet, by path.
        done: What was published.
        publish: The policy's ``publish``.
        ended: Whether the run has come to its end.
        mode: Whether a smaller or a larger metric is better.
    """
    new = sorted(
        {each.path: each for each in candidates if each.path not in waiting}.values(),
        key=lambda each: (each.step, each.path),
    )
    reached = max([done.step, *(each.step for each in waiting.values())])
    new = [each for each in new if each.step > reached]
    one_a_step = {each.step: each for each in reversed(new)}
    new = [one_a_step[step] for step in sorted(one_a_step)]
    if publish == "end":
        # What waits is the end that an earlier process has seen: the run was trained further.
        add = new[-1:] if ended else []
        return Intentions(tuple(add), tuple(sorted(waiting)) if add else ())
    if publish == "best":
        best = done
        for each in waiting.values():
            best = best.and_also(each, mode)
        chosen: Candidate | None = None
        for each in new:
            if each.value is None or math.isnan(each.value):
                continue
            if best.value is None or is_better(each.value, best.value, mode):
                chosen, best = each, best.and_also(each, mode)
        # A better one takes the place of those that wait.
        return Intentions((chosen,), tuple(sorted(waiting))) if chosen else Intentions()
    kept = sorted([*waiting.values(), *new], key=lambda each: (each.step, each.path))
    over = {each.path for each in kept[:-MOST_WAITING]}
    return Intentions(
        tuple(each for each in new if each.path not in over),
        tuple(sorted(path for path in waiting if path in over)),
    )


def next_of(waiting: Iterable[Candidate]) -> Candidate | None:
    """What is to be published first: the one with the fewest steps."""
    return min(waiting, key=lambda each: (each.step, each.path), default=None)


def write_done(done: Done) -> str:
    """What was published, as the journal notes it."""
    return json.dumps([done.step, done.value])


def read_done(said: str) -> Done:
    """What the journal has noted; nothing, if another version noted something else."""
    try:
        step, value = json.loads(said)
        return Done(int(step), None if value is None else float(value))
    except (ValueError, TypeError):
        return Done()
