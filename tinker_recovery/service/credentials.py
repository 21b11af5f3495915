"""Which credential our own requests carry: by the SDK's rules, with its command run aside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from typing import Final

import anyio.to_thread
import tinker
from pydantic import SecretStr
from tinker.lib._auth_token_provider import (
    ApiKeyAuthProvider,
    CredentialCmdAuthProvider,
    resolve_auth_provider,
)
from tinker.lib._jwt_auth import jwt_claims
from tinker.lib.credentials import JsonCredentialStore, default_credentials_path

from tinker_recovery.errors import StatusRefused, StatusUnavailable
from tinker_recovery.telemetry.redaction import hide, redact

COMMAND: Final = "TINKER_CREDENTIAL_CMD"

COMMAND_S: Final = 60.0
"""How long the command may take, or the factory of clients that is asked for a new key.

Longer than any request: a sign-in may take its time, and what it ends with serves the next one.
"""

UNAUTHORIZED: Final = 401

PLACES = (
    "set TINKER_API_KEY to your key (tml-...), or run `tinker auth login` "
    f"(or use {COMMAND}, or api_key= of the ServiceClient)"
)


def key_of(service: tinker.ServiceClient) -> SecretStr | None:
    """The key of a ServiceClient: its argument, the environment, what is stored; reads a file.

    The SDK looks only when it opens a session. None where there is a command, or nothing.

    Raises:
        StatusRefused: The file of stored keys cannot be read.
    """
    key = service._api_key or os.environ.get("TINKER_API_KEY")  # noqa: SLF001 - the SDK has no public way to ask
    if key is None and not os.environ.get(COMMAND):
        path = default_credentials_path()
        try:
            stored = JsonCredentialStore(path).get_default_key()
        except (OSError, ValueError) as error:
            # The texts of these, pydantic's among them, show what is in the file.
            reason = error.strerror if isinstance(error, OSError) else "it is no list of keys"
            raise _refused(f"the stored keys in {path} cannot be read ({reason})") from None
        key = None if stored is None else stored.key
    return SecretStr(key) if key else None


def key_from(service: tinker.ServiceClient) -> str:
    """Where the key of a ServiceClient comes from, for people."""
    if service._api_key:  # noqa: SLF001 - as above
        return "api_key= of the ServiceClient that service= returns"
    if os.environ.get("TINKER_API_KEY"):
        return "that of TINKER_API_KEY"
    if os.environ.get(COMMAND):
        return f"what the command of {COMMAND} prints"
    return f"the one stored in {default_credentials_path()}"


async def check(key: SecretStr | None) -> None:
    """Refuse to begin without a credential; runs no command.

    Raises:
        StatusRefused: There is none, or one that the SDK never sends.
    """
    if not isinstance(_provider(key, by_command=False), CredentialCmdAuthProvider):
        await credential(key, by_command=False)


async def credential(key: SecretStr | None, *, by_command: bool) -> str:
    """What the SDK would show the service who asks, or exchange for a token.

    Cancelling it ends the command, and all that it has started.

    Args:
        key: The key, if there is one.
        by_command: Whether the service wants what the command prints, though there is a key.

    Raises:
        StatusRefused: There is none, or one that the SDK never sends.
        StatusUnavailable: The command printed none within :data:`COMMAND_S`; it may do so later.
    """
    provider = _provider(key, by_command=by_command)
    if not isinstance(provider, CredentialCmdAuthProvider):
        return await _of_key(provider)
    running = _Running(os.environ[COMMAND])
    try:
        printed = await anyio.to_thread.run_sync(running.output, abandon_on_cancel=True)
    finally:
        running.end()
    if not printed or not _can_be_sent(printed):
        raise StatusUnavailable(
            f"the command of {COMMAND} printed "
            + ("what is no credential, but several lines or no text" if printed else "nothing")
        )
    # The shapes of credentials are hidden anyway; a command may print new ones for weeks.
    if redact(printed) == printed:
        hide(printed)
    return printed


async def plain_key(key: SecretStr | None) -> str:
    """The key for a service that takes nothing else.

    Raises:
        StatusRefused: There is none, or one that the SDK never sends.
    """
    if key is None and os.environ.get(COMMAND):
        raise _refused(f"the service takes API keys alone, and {COMMAND} is all there is")
    if key is None:
        raise _refused("there is no API key for the service")
    try:
        return await _of_key(ApiKeyAuthProvider(key.get_secret_value()))
    except (tinker.TinkerError, ValueError):
        raise _refused(_WRONG) from None


_WRONG = "the API key is neither a key (tml-...) nor a JWT (eyJ...), and the SDK never sends it"


def _provider(key: SecretStr | None, *, by_command: bool) -> object:
    given = None if key is None else key.get_secret_value()
    command = os.environ.get(COMMAND)
    if not given and not command and not by_command and not os.environ.get("TINKER_API_KEY"):
        raise _refused("there is no API key for the service")
    if by_command and not command and not (given or "").startswith("eyJ"):
        raise _refused(f"the service wants short-lived credentials, and {COMMAND} is not set")
    try:
        return resolve_auth_provider(given, by_command)
    except (tinker.TinkerError, ValueError):
        raise _refused(_WRONG) from None


async def _of_key(provider: object) -> str:
    assert isinstance(provider, ApiKeyAuthProvider)  # noqa: S101 - the SDK has no third kind
    try:
        key = await provider.get_token()
    except tinker.TinkerError:
        raise _refused("the API key is a JWT that has expired") from None
    if not key or not _can_be_sent(key):
        raise _refused("the API key has spaces, line ends or other signs that no header can carry")
    return key


def _can_be_sent(text: str) -> bool:
    # What cannot be would be shown in the error of the HTTP library.
    return text.isascii() and text.isprintable() and " " not in text


def _refused(what: str) -> StatusRefused:
    return StatusRefused(f"{what}: {PLACES}", status_code=UNAUTHORIZED)


def lifetime_s(token: str) -> float | None:
    """How long a token lives, by its own two dates, whatever our clock says; None if unknown."""
    try:
        claims = jwt_claims(token)
        lives_s = float(claims["exp"]) - float(claims["iat"])
    except (ValueError, KeyError, TypeError):
        return None
    return lives_s if lives_s > 0 else None


class _Running:
    """The command, run in a shell as the SDK runs it, in a group of processes of its own."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._ended = False
        self._shell: subprocess.Popen[bytes] | None = None

    def output(self) -> str:
        """What it prints; blocks."""
        with self._lock:
            if self._ended:
                return ""
            try:
                self._shell = subprocess.Popen(  # noqa: S602 - the user's own command line
                    self._command,
                    shell=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:  # no memory, no file descriptors
                raise StatusUnavailable(
                    f"the command of {COMMAND} could not be started: {error.strerror}"
                ) from None
        with self._shell as shell:
            try:
                printed, _ = shell.communicate(timeout=COMMAND_S)
            except subprocess.TimeoutExpired:
                self.end()
                raise StatusUnavailable(
                    f"the command of {COMMAND} was ended after {COMMAND_S:g} s"
                ) from None
        return printed.decode(errors="replace").strip()

    def end(self) -> None:
        """End it, and what it has started, if it has not come to its end; from any thread."""
        with self._lock:
            self._ended = True
        if self._shell is not None and self._shell.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._shell.pid, signal.SIGKILL)
