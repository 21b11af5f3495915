"""What a supervisor is made with, once it has been checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tinker_recovery.supervision.backoff import Backoff
from tinker_recovery.supervision.events import Listener
from tinker_recovery.supervision.intensity import healthy_after
from tinker_recovery.supervision.specs import ChildSpec
from tinker_recovery.supervision.strategies import AutoShutdown, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The arguments of a supervisor; :class:`SupervisionTree` explains each."""

    name: str
    specs: tuple[ChildSpec, ...]
    strategy: Strategy
    max_restarts: int
    max_seconds: float
    backoff: Backoff
    healthy_after_s: float | None
    auto_shutdown: AutoShutdown
    dynamic: bool
    """Children are independent: forgotten once they are down, and stopped side by side."""
    on_event: Listener | None
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    random: Callable[[], float]

    def healthy_s(self, spec: ChildSpec | None) -> float:
        """Seconds after which a child counts as healthy; None: one with no backoff of its own.

        Raises:
            SpecError: Its backoff does not fit into the window.
        """
        return healthy_after(
            self.healthy_after_s,
            max_restarts=self.max_restarts,
            max_seconds=self.max_seconds,
            backoff=(spec and spec.backoff) or self.backoff,
        )
