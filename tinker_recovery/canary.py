"""The canary: a small fixed batch whose answer tells the weights apart.

Every checkpoint's answer is remembered. The same weights give the same answer, within a tolerance,
so a wrong restore and a silent return to older weights both show. Pure: who asks, and when, is
decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from tinker import types

Answer = tuple[float, ...]
"""The logprobs of every token of the canary, in order."""


def answer_of(output: types.ForwardBackwardOutput) -> Answer:
    """The answer inside the result of a forward pass."""
    return tuple(float(value) for each in output.loss_fn_outputs for value in each["logprobs"].data)


def distance(one: Answer, other: Answer) -> float:
    """The largest difference of a logprob; infinite where the two cannot be compared."""
    if len(one) != len(other):
        return float("inf")
    widest = 0.0
    for left, right in zip(one, other, strict=True):
        # Written so that NaN counts as far away, and two equal infinities as near.
        if left == right:
            continue
        apart = abs(left - right)
        widest = max(widest, apart if apart == apart else float("inf"))  # noqa: PLR0124 - the test for NaN
    return widest


class CanaryBook:
    """What the canary answered at each checkpoint of a run.

    Args:
        tolerance: The largest distance of two answers that count as equal.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._answers: dict[tuple[str, int], Answer] = {}

    def record(self, attempt: str, step: int, answer: Answer) -> None:
        """Remember what the weights of an attempt answered at a step."""
        self._answers[attempt, step] = answer

    def expected(self, attempt: str, step: int) -> Answer | None:
        """What these weights answered before, if they were asked."""
        return self._answers.get((attempt, step))

    def known(self, attempt: str) -> list[tuple[str, int]]:
        """The (attempt, step) of every answer an attempt's weights gave."""
        return [at for at in self._answers if at[0] == attempt]

    def equal(self, one: Answer, other: Answer) -> bool:
        """Whether two answers are those of the same weights."""
        return distance(one, other) <= self._tolerance

    def rolled_back_to(
        self, answer: Answer, step: int, branch: Iterable[tuple[str, int]]
    ) -> int | None:
        """The earlier step whose weights answer, though those of ``step`` should; None if none.

        An answer that is equal to that of the newest checkpoint below ``step`` and to an older
        one's as well says nothing: these weights do not change from step to step.

        Args:
            answer: What was answered just now.
            step: Optimizer steps that should be in the weights.
            branch: The (attempt, step) of every checkpoint the run descends from.
        """
        matches = {
            at
            for attempt, at in branch
            if at < step
            and (old := self._answers.get((attempt, at))) is not None
            and self.equal(answer, old)
        }
        return matches.pop() if len(matches) == 1 else None
