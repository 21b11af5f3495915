"""Where a client stands: its steps, and the optimizer steps of the iteration under way.

A step is one iteration of the loop, of one optimizer step or of several. Checkpoints, schedules and
recoveries count these, and none lies inside one.
"""

from __future__ import annotations

from tinker_recovery.errors import UsageError


class Iterations:
    """Counts optimizer steps, and the iterations they make up. Not thread-safe.

    Args:
        step: Iterations in the weights at first.
        updates_per_step: How many optimizer steps an iteration has.
    """

    def __init__(self, step: int, updates_per_step: int) -> None:
        self.step = step
        """Iterations complete, skipped ones included."""
        self.updates_per_step = updates_per_step
        self.updates = 0
        """Optimizer steps of the iteration under way."""
        self.open = False
        """Whether the loop has begun an iteration whose end it names itself."""
        self.weights = 0
        """Optimizer steps counted in all, which tells the weights of one from those of another."""
        self._passes = 0

    @property
    def inside(self) -> bool:
        """Whether the weights lie inside an iteration."""
        return self.updates > 0

    @property
    def begun(self) -> int:
        """Iterations that the weights have anything of."""
        return self.step + self.inside

    @property
    def where(self) -> str:
        """Where inside an iteration it is, in words."""
        of = "" if self.open else f" of {self.updates_per_step}"
        return f"after {self.updates}{of} optimizer steps of step {self.step}"

    def begin(self) -> None:
        """The loop names the end of the next iteration itself.

        Raises:
            UsageError: One is under way.
        """
        if self.inside or self.open:
            raise UsageError(
                f"iteration() was begun {self.where}: that one is not over. If an exception has "
                "left it, let that end the attempt's body, so that the step is done again"
            )
        self.open = True

    def leave(self) -> None:
        """An exception leaves the iteration; it stays under way if it has optimizer steps."""
        self.open = self.open and self.inside

    def check_whole(self, what: str) -> None:
        """Raise UsageError inside an iteration; ``what`` begins its text."""
        if self.inside:
            raise UsageError(
                f"{what} {self.where}: it concerns an iteration as a whole, so do that before its "
                "first optim_step"
            )

    def passed(self) -> None:
        """A forward and backward pass was submitted."""
        self._passes += 1

    def updated(self) -> bool:
        """An optimizer step was submitted; whether its iteration is whole with it."""
        self.updates += 1
        self.weights += 1
        return not self.open and self.updates == self.updates_per_step

    def ended(self) -> tuple[int, float | None]:
        """The iteration is over: the new step, and the passes of each of its optimizer steps.

        The latter is None if it had none.
        """
        passes = self._passes / self.updates if self.updates else None
        self.step += 1
        self.updates = self._passes = 0
        self.open = False
        return self.step, passes
