"""A supervisor's arguments, checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tinker_recovery.supervision.backoff import Backoff
from tinker_recovery.supervision.checks import number, one_of, text, whole
from tinker_recovery.supervision.errors import SpecError
from tinker_recovery.supervision.events import Listener
from tinker_recovery.supervision.intensity import healthy_after
from tinker_recovery.supervision.specs import ChildSpec
from tinker_recovery.supervision.strategies import AutoShutdown, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The arguments of a supervisor; :class:`SupervisionTree` explains each.

    Raises:
        SpecError: One that cannot work.
    """

    name: str
    specs: tuple[ChildSpec, ...] = ()
    template: ChildSpec | None = None
    """What the children of a dynamic supervisor are like; they are forgotten once they are down,
    and stopped side by side."""
    strategy: Strategy = "one_for_one"
    max_restarts: int
    max_seconds: float
    backoff: Backoff
    healthy_after_s: float | None
    auto_shutdown: AutoShutdown
    on_event: Listener | None
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    random: Callable[[], float]

    def __post_init__(self) -> None:
        one_of("strategy", self.strategy, Strategy)
        one_of("auto_shutdown", self.auto_shutdown, AutoShutdown)
        whole("max_restarts", self.max_restarts)
        if number("max_seconds", self.max_seconds, "more than 0 seconds") <= 0:
            raise SpecError("max_seconds", self.max_seconds, "more than 0 seconds")
        text("name", self.name)
        if not isinstance(self.backoff, Backoff):
            raise SpecError("backoff", self.backoff, "a Backoff, or None for the default one")
        for spec in (*self.specs, self.template, None):
            self.healthy_s(spec)

    def healthy_s(self, spec: ChildSpec | None) -> float:
        """Seconds after which a child counts as healthy; None: one without its own backoff.

        Raises:
            SpecError: The backoff does not fit into the window.
        """
        max_restarts, max_seconds = self.budget(spec)
        return healthy_after(
            self.healthy_after_s,
            max_restarts=max_restarts,
            max_seconds=max_seconds,
            backoff=(spec and spec.backoff) or self.backoff,
        )

    def budget(self, spec: ChildSpec | None) -> tuple[int, float]:
        """Restarts that are allowed within so many seconds; None: of a child without its own."""
        if spec is None or spec.max_restarts is None:
            return self.max_restarts, self.max_seconds
        return spec.max_restarts, spec.max_seconds or self.max_seconds
