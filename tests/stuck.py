"""A recovery that gets stuck in one of its phases."""

from __future__ import annotations

import anyio

from tinker_recovery import RecoveryEvent
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

_AT_DETECTION = {
    "select": FaultRule("slow", request="run_checkpoints", delay_s=30.0),
    "validate": FaultRule("slow", request="weights_info", delay_s=30.0),
    "create_client": FaultRule("hang", request="load_weights"),
    "backoff": FaultRule("fail", request="load_weights"),
}


class Stuck:
    """Gets a recovery stuck in one phase, and says when it is.

    The run needs a canary for the phase ``verify``, :meth:`resume` as ``on_recovery`` for
    ``resume``, and a backoff longer than the test for ``backoff``.

    Args:
        local: The server.
        phase: The phase's span without ``recovery.``.
    """

    def __init__(self, local: LocalTinker, phase: str) -> None:
        self.phase = phase
        self._local = local
        self._reached = anyio.Event()

    def note(self, event: RecoveryEvent) -> None:
        """To be the Supervisor's ``on_event``."""
        if event.name == names.EVENT_DETECTED and self.phase in _AT_DETECTION:
            self._local.inject(_AT_DETECTION[self.phase])
        if event.name == names.EVENT_CLIENT_CREATED and self.phase == "verify":
            # The canary on the new client: the only forward pass there is just now.
            self._local.inject(FaultRule("hang", 5, "forward_backward"))
        if event.name == names.EVENT_FAILED:
            self._reached.set()

    async def resume(self, *_: object) -> None:
        """To be the policy's ``on_recovery``."""
        if self.phase == "resume":
            self._reached.set()
            await anyio.sleep_forever()

    def is_stuck(self) -> bool:
        """Whether the phase has been reached."""
        return self._reached.is_set() or any(
            fault.rule.action in {"slow", "hang"} for fault in self._local.fired
        )
