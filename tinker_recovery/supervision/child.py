"""The handshake: what one incarnation of a child calls to talk to its supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinker_recovery.supervision.engine import Engine


class Child:
    """Passed to a child's ``start``; each incarnation gets its own.

    Call it in the event loop's thread only. Once the incarnation is over, calls have no effect.

    Attributes:
        id: The child's id.
        incarnation: Counts from 1; each restart adds one.
    """

    __slots__ = ("_engine", "id", "ignored", "incarnation", "is_ready", "last_beat_at", "value")

    def __init__(self, child_id: str, incarnation: int, engine: Engine) -> None:
        self.id = child_id
        self.incarnation = incarnation
        self.is_ready = False
        self.ignored = False
        self.value: object = None
        self.last_beat_at = 0.0
        self._engine = engine

    def __repr__(self) -> str:
        return f"<Child {self.id!r}, incarnation {self.incarnation}>"

    def started(self, value: object = None) -> None:
        """Report that the child is up; whoever waits for its start continues.

        Only the first call counts.

        Args:
            value: Shown as ``ChildInfo.value``.
        """
        if not self.is_ready:
            self.value = value
            self._engine.ready(self)

    def ignore(self) -> None:
        """Report that there is nothing to run; return after this, and the start counts as done.

        The child stays in its supervisor, down, and can be started with ``restart_child``; a
        temporary one is forgotten.
        """
        self.ignored = True

    def heartbeat(self) -> None:
        """Show that the child is alive; has no effect without ``ChildSpec.heartbeat_s``."""
        self.last_beat_at = self._engine.now()
