"""The seam: what the rest of the package needs from a training service.

Tests and other backends implement :class:`Backend`; the one for Tinker is in ``backend``.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import unquote_to_bytes

import tinker
from pydantic import SecretStr

from tinker_recovery.telemetry.redaction import (
    hide,
    hide_environment,
    hide_headers,
    hide_userinfo,
    split_userinfo,
)


@dataclass(frozen=True, slots=True)
class FromBaseModel:
    """Create a fresh run; repeating it with the same seed gives the same weights.

    Attributes:
        base_model: Name of the base model.
        options: Further arguments of ``create_lora_training_client``; ``seed`` is always set.
    """

    base_model: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FromCheckpoint:
    """Create a run from a saved state.

    Attributes:
        path: ``tinker://RUN/weights/NAME``.
        optimizer: Whether to restore the optimizer's moments with the weights.
    """

    path: str
    optimizer: bool


@dataclass(frozen=True, slots=True)
class FromCallable:
    """Create a run by the user's own function of a fresh ServiceClient, sync or async.

    Attributes:
        start: Returns a TrainingClient, or a future of one. A sync one runs in a worker thread,
            because the SDK's creating calls block.
    """

    start: Callable[[tinker.ServiceClient], Any]


Origin = FromBaseModel | FromCheckpoint | FromCallable
"""How a client comes to be; each can be repeated."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the service is and how to be let in. Making one hides its secrets in every text.

    Attributes:
        base_url: Without a trailing slash. A user and password given in it
            (``https://user:password@host``) are taken out, and sent as a header.
        api_key: Never shown in a repr.
        headers: Further headers the user's ServiceClient sends. An Authorization among them is sent
            in place of a user and password in the URL.
    """

    base_url: str
    api_key: SecretStr | None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        plain, userinfo = split_userinfo(self.base_url)
        headers = self.headers
        if userinfo:
            hide_userinfo(userinfo)
            object.__setattr__(self, "base_url", plain)
            if not any(name.lower() == "authorization" for name in headers):
                basic = base64.b64encode(unquote_to_bytes(userinfo)).decode()
                headers = {**headers, "Authorization": f"Basic {basic}"}
                object.__setattr__(self, "headers", headers)
        hide_headers(headers)
        hide_environment()
        if self.api_key is not None:
            hide(self.api_key.get_secret_value())


@dataclass(frozen=True, slots=True, eq=False)
class Connection:
    """A live client and what has to be closed with it.

    Attributes:
        training: The SDK's client.
        run_id: The Tinker run id.
        service: The ServiceClient to close with it; None if it belongs to the user.
    """

    training: tinker.TrainingClient
    run_id: str
    service: tinker.ServiceClient | None


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """A checkpoint to save right behind an optimizer step.

    Attributes:
        name: Unique within the Tinker run.
        metadata: The ``user_metadata`` to store with it.
        ttl_s: Its lifetime in whole seconds; None for no end.
    """

    name: str
    metadata: dict[str, str]
    ttl_s: int | None = None


CloseStatus = Literal["success", "errored", "interrupted"]
"""How a session ended, in the service's words."""


class Backend(Protocol):
    """Creates and closes clients, each call within a deadline of its own."""

    async def endpoint(self) -> Endpoint:
        """Where the service is, for whoever reads its status without the SDK."""
        ...

    def open_ahead(self) -> Any:
        """Begin to open a session for a :meth:`connect` to come; returns at once.

        To be given to :meth:`connect` or to :meth:`discard`, once.
        """
        ...

    async def discard(self, opening: Any) -> None:
        """Close a session that was opened ahead and is not needed; never raises an Exception."""
        ...

    async def connect(
        self, origin: Origin, *, deadline_s: float, opening: Any = None
    ) -> Connection:
        """A new client in a new session, or in the one that was opened ahead.

        Cancelling it, or its deadline, leaves no session behind: what was created is closed.

        Raises:
            DeadlineExceeded: It took longer than ``deadline_s``.
            Exception: Whatever the service answered.
        """
        ...

    async def close(
        self, connection: Connection, status: CloseStatus, detail: str, *, deadline_s: float
    ) -> None:
        """Finish the session and stop everything that polls for it; never raises an Exception.

        Within the deadline the session is finished at the service; past it, only what is on this
        side is released.
        """
        ...

    async def aclose(self) -> None:
        """Let go what is held ready for clients to come; never raises an Exception."""
        ...


ServiceFactory = Callable[[], tinker.ServiceClient]
"""Returns a fresh ServiceClient, one for each recovery: never the same client twice."""
