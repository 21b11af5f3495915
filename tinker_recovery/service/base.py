"""What the rest of the package knows of the service: where it is, and how a client comes to be."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
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
    """Create a new Tinker run; the same seed gives the same weights again.

    Attributes:
        base_model: Name of the base model.
        options: Further arguments of ``create_lora_training_client``; ``seed`` is always set.
    """

    base_model: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return f"base model {self.base_model}"


@dataclass(frozen=True, slots=True)
class FromCheckpoint:
    """Create a Tinker run from a saved state.

    Attributes:
        path: ``tinker://RUN/weights/NAME``.
        optimizer: Whether to restore the optimizer state with the weights.
    """

    path: str
    optimizer: bool

    def __str__(self) -> str:
        return f"checkpoint {self.path}"


@dataclass(frozen=True, slots=True)
class FromCallable:
    """Create a Tinker run by a function of the user's, sync or async.

    Attributes:
        start: Takes a fresh ServiceClient; returns a TrainingClient, or a future of one. A sync
            function runs in a worker thread, because the SDK's creating calls block.
    """

    start: Callable[[tinker.ServiceClient], Any]

    def __str__(self) -> str:
        name = getattr(self.start, "__qualname__", type(self.start).__qualname__)
        return f"start={name}"


Origin = FromBaseModel | FromCheckpoint | FromCallable
"""How a client is created; each can be repeated."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of the service, and the credentials for it. Making one hides its secrets.

    Attributes:
        base_url: Without a trailing slash. A user and password given in it
            (``https://user:password@host``) are taken out, and sent as a header.
        api_key: Hidden in the repr.
        headers: Additional headers the user's ServiceClient sends. An Authorization among them is
            sent in place of a user and password in the URL.
        renew: Asks for a new key, and the headers that go with it, once this one is refused;
            blocks. None where there is none to ask for.
        url_from: Where the address comes from, for people.
        key_from: The same of the key.
    """

    base_url: str
    api_key: SecretStr | None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    renew: Callable[[], Endpoint] | None = field(default=None, repr=False, compare=False)
    url_from: str = field(default="", repr=False, compare=False)
    key_from: str = field(default="", repr=False, compare=False)

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
    """A client, and what has to be closed with it.

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
    """A checkpoint to save directly behind an optimizer step.

    Attributes:
        name: Unique within the Tinker run.
        metadata: The ``user_metadata`` to store with it; None for none.
        ttl_s: Its lifetime in whole seconds; None for unlimited.
    """

    name: str
    metadata: dict[str, str] | None
    ttl_s: int | None = None


CloseStatus = Literal["success", "errored", "interrupted"]
"""How a session ended, as the service knows it."""

RUN_FINISHED = "tinker_recovery: the run has come to its end"
"""The detail that the session of a run's last attempt is finished with, and no other session."""


ServiceFactory = Callable[[], tinker.ServiceClient]
"""Returns a fresh ServiceClient for each recovery: a client is never used again."""
