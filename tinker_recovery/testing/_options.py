"""The options of a local server, in this process or another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

DEFAULT_API_KEY = "tml-local-key"

Restart = Literal["corrupted", "unloaded", "rollback"]
"""What happens to existing runs, whose live weights are lost, when the server starts again:

- ``corrupted``: they are reported as corrupted, and every request of theirs fails with "model ...
  is not loaded".
- ``unloaded``: they are not; every request of theirs is answered HTTP 400, "model ... is not
  loaded" (as SkyRL does).
- ``rollback``: they silently go back to their last checkpoint, or their beginning, and continue.
  Requests from before the restart have failed (as in TuFT).
"""


class Options(TypedDict, total=False):
    """The options by name.

    Attributes:
        api_key: The key clients have to send.
        jwt: Whether clients have to exchange the key for a token, as at the hosted service.
        long_poll_s: Seconds that a poll waits for a result before it answers try_again.
        step_s: Seconds that each forward_backward takes.
        save_s: Seconds that each save takes.
        load_s: Seconds that each load of a checkpoint takes.
        restart: What happens to runs from before a restart on the same folder.
        cold_optimizer: Whether every load with optimizer silently leaves the moments at zero.
        lenient: Whether loads ignore checksums, so that a flipped bit or a NaN loads silently. What
            cannot be parsed still fails to load.
    """

    api_key: str
    jwt: bool
    long_poll_s: float
    step_s: float
    save_s: float
    load_s: float
    restart: Restart
    cold_optimizer: bool
    lenient: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """:class:`Options` with their defaults; raises ValueError for one out of its range."""

    api_key: str = DEFAULT_API_KEY
    jwt: bool = False
    long_poll_s: float = 5.0
    step_s: float = 0.0
    save_s: float = 0.0
    load_s: float = 0.0
    restart: Restart = "corrupted"
    cold_optimizer: bool = False
    lenient: bool = False

    def __post_init__(self) -> None:
        if self.restart not in get_args(Restart):
            raise ValueError(
                f"restart={self.restart!r} is not allowed: {', '.join(get_args(Restart))}"
            )
        for name in ("long_poll_s", "step_s", "save_s", "load_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r} is not allowed: 0 or more")
