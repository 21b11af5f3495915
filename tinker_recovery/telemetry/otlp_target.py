"""Where telemetry goes: arguments and the standard OTEL_* variables, read and checked. Pure.

Checked here, and not left to the exporters, for two reasons: an exporter reports a bad address
minutes later from a thread of its own, and puts a header it cannot send, token and all, into the
log. Nothing in this module ever shows a header's value.

Source: OpenTelemetry specification, "OpenTelemetry Protocol Exporter".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import unquote, urlsplit

from tinker_recovery.errors import UsageError

Protocol = Literal["grpc", "http/protobuf"]
Signal = Literal["traces", "metrics"]

DEFAULT_PORT: Mapping[Protocol, int] = {"grpc": 4317, "http/protobuf": 4318}

_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
# What the exporters take from the environment: no quote, comma, semicolon or backslash unencoded.
_ENCODED = re.compile(r"[\x20\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_GENERIC = "OTEL_EXPORTER_OTLP"


@dataclass(frozen=True, slots=True)
class Target:
    """A place to export to.

    Attributes:
        protocol: How to speak to it.
        endpoint: The full address, for HTTP with the signal's path.
        headers: Sent with every export, lower-case names; never shown.
    """

    protocol: Protocol
    endpoint: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"{self.endpoint} ({self.protocol})"

    @property
    def is_plain(self) -> bool:
        """Whether it is spoken to without TLS."""
        return self.endpoint.startswith("http://")


def is_off(signal: Signal, environment: Mapping[str, str]) -> bool:
    """Whether the environment turns this signal off."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = environment.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower()
    return disabled or exporter == "none"


def resolve(
    signal: Signal,
    *,
    endpoint: str | None,
    protocol: str | None,
    headers: Mapping[str, str] | None,
    environment: Mapping[str, str],
) -> Target:
    """What the arguments say, else the signal's own variables, else the generic ones, else default.

    Raises:
        UsageError: An address, protocol or header that cannot work; says where it came from.
    """
    read = _Environment(signal, environment)
    address, origin, is_base = read.endpoint(endpoint)
    chosen = read.protocol(protocol, address)
    if address is None:
        address = f"http://localhost:{DEFAULT_PORT[chosen]}"
    return Target(
        chosen,
        _checked(address, origin, chosen, f"/v1/{signal}" if is_base else None),
        {**read.headers(chosen), **_checked_headers(headers or {}, "headers", chosen)},
    )


class _Environment:
    def __init__(self, signal: Signal, environment: Mapping[str, str]) -> None:
        self._own = f"{_GENERIC}_{signal.upper()}"
        self._environment = environment

    def _first(self, what: str) -> tuple[str | None, str]:
        """The first of the two variables that is set, and its name; empty counts as unset."""
        for prefix in (self._own, _GENERIC):
            value = self._environment.get(f"{prefix}_{what}", "").strip()
            if value:
                return value, f"{prefix}_{what}"
        return None, ""

    def endpoint(self, given: str | None) -> tuple[str | None, str, bool]:
        """The address, where it came from, and whether HTTP puts the signal's path behind it."""
        if given is not None:
            return given, "endpoint", True
        value, name = self._first("ENDPOINT")
        return value, name, not name.startswith(self._own)

    def protocol(self, given: str | None, address: str | None) -> Protocol:
        value, name = (given, "protocol") if given is not None else self._first("PROTOCOL")
        if value is None:
            # A collector's HTTP port does not understand gRPC, and the other way round.
            is_http = address is not None and re.search(r":4318(/|$)|/v1/\w+$", address)
            return "http/protobuf" if is_http else "grpc"
        for known in get_args(Protocol):
            if value == known:
                return known  # type: ignore[no-any-return]  # one of Protocol's own values
        raise UsageError(
            f"{name}={value!r} is not allowed: one of {' and '.join(get_args(Protocol))}"
        )

    def headers(self, protocol: Protocol) -> dict[str, str]:
        value, name = self._first("HEADERS")
        return {} if value is None else _checked_headers(dict(_pairs(value, name)), name, protocol)


def _checked(address: str, origin: str, protocol: Protocol, path: str | None) -> str:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{origin} is no address: {error}") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Not shown: it holds, or may hold, a secret, and exporters log their address.
        raise UsageError(
            f"{origin} contains a user, a query or a fragment, which would show up in logs: give "
            "the plain address, and credentials as headers"
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(
            f"{origin}={address!r} is not allowed: http://HOST:PORT, or https:// for TLS, as in "
            f"http://localhost:{DEFAULT_PORT[protocol]}"
        )
    where = parts.path.rstrip("/")
    if protocol == "grpc":
        if where:
            raise UsageError(
                f"{origin}={address!r} is not allowed with protocol 'grpc': an address without a "
                "path, or protocol 'http/protobuf'"
            )
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return f"{parts.scheme}://{host}:{port or DEFAULT_PORT['grpc']}"
    if path is None or where.endswith(path):
        return address
    return f"{parts.scheme}://{parts.netloc}{where}{path}"


def _pairs(value: str, origin: str) -> Iterator[tuple[str, str]]:
    for number, item in enumerate(filter(None, (each.strip() for each in value.split(","))), 1):
        name, found, text = item.partition("=")
        if not found or not _ENCODED.fullmatch(text):
            raise UsageError(
                f"{origin}: entry {number} is not NAME=VALUE with a URL-encoded value (the value "
                "is not shown)"
            )
        yield unquote(name), unquote(text)


def _checked_headers(given: Mapping[str, str], origin: str, protocol: Protocol) -> dict[str, str]:
    checked: dict[str, str] = {}
    for raw, value in given.items():
        name = str(raw).strip().lower()
        if not _NAME.fullmatch(name):
            raise UsageError(f"{origin}: a header's name is not one (letters, digits, - and _)")
        if protocol == "grpc" and (name.startswith("grpc-") or name.endswith("-bin")):
            raise UsageError(f"{origin}: header {name!r} is reserved by gRPC")
        if not _VALUE.fullmatch(value.strip()):
            raise UsageError(
                f"{origin}: the value of header {name!r} is not allowed (and not shown): printable "
                "ASCII on one line"
            )
        checked[name] = value.strip()
    return checked
