"""The handshake object: what one incarnation of a child is given to talk to its supervisor."""

from __future__ import annotations

from typing import Any, Protocol


class ChildHost(Protocol):
    """What a handshake needs of the supervisor behind it."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def ready(self, child: Any) -> None:
        """The child has called ``started()`` for the first time."""
        ...


class Child:
    """Handed to a child's ``start``, one for each incarnation.

    All calls belong to the event loop's thread. They do nothing once the incarnation is over, so
    a straggler can do no harm.

    Attributes:
        id: The child's id.
        incarnation: Counts from 1; a restarted child is the next incarnation.
    """

    __slots__ = ("_host", "id", "ignored", "incarnation", "is_ready", "last_beat_at", "value")

    def __init__(self, child_id: str, incarnation: int, host: ChildHost) -> None:
        self.id = child_id
        self.incarnation = incarnation
        self.is_ready = False
        self.ignored = False
        self.value: object = None
        self.last_beat_at = 0.0
        self._host = host

    def __repr__(self) -> str:
        return f"<Child {self.id!r}, incarnation {self.incarnation}>"

    def started(self, value: object = None) -> None:
        """The child is up: whoever waits for its start goes on, and is given this value.

        Only the first call counts.
        """
        if not self.is_ready:
            self.value = value
            self._host.ready(self)

    def ignore(self) -> None:
        """There is nothing to run: return after this, and the start counts as done.

        The child stays in its supervisor, down, and can be started with ``restart_child``; a
        temporary one is forgotten.
        """
        self.ignored = True

    def heartbeat(self) -> None:
        """A sign of life, for a child with a heartbeat deadline; otherwise without effect."""
        self.last_beat_at = self._host.now()
