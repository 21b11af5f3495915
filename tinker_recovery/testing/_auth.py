"""Authentication: by the API key, or by a token made from it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time

from starlette.requests import Request

from tinker_recovery.testing._runs import ServiceError

_JWT_LIFETIME_S = 3600

_OWNER = {
    "sub": "tml:organization_user:local",
    "org_id": "local",
    "email": "local@example.invalid",
}

SIGNED = "/signed"
"""Where the downloads are; their addresses carry a token, so they need no key."""


def _b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class Auth:
    """Checks the key of each request; with ``jwt`` it has to be exchanged for a token first."""

    def __init__(self, api_key: str, *, jwt: bool) -> None:
        self._api_key = api_key
        self.jwt = jwt
        self._secret = secrets.token_bytes(16)

    def change(self, api_key: str, *, revoke: bool) -> None:
        """Take another key from now on; with ``revoke`` the tokens made so far are refused."""
        self._api_key = api_key
        if revoke:
            self._secret = secrets.token_bytes(16)

    def check(self, request: Request) -> None:
        """Raise ServiceError 401 unless the request carries a valid key or token."""
        given = request.headers.get("x-api-key", "")
        path = request.url.path
        if path.endswith("/healthz") or path.startswith(f"{SIGNED}/"):
            return
        by_key = not self.jwt or path.endswith(("/client/config", "/auth/token"))
        if path.startswith("/testing/") or by_key:
            allowed = hmac.compare_digest(given.encode(), self._api_key.encode())
        else:
            allowed = self._is_token(given)
        if not allowed:
            raise ServiceError(401, "missing or invalid API key")

    def token(self) -> str:
        """A new token."""
        now = int(time.time())
        claims = {"iss": "local-tinker", "iat": now, "exp": now + _JWT_LIFETIME_S, **_OWNER}
        header = {"alg": "HS256", "typ": "JWT"}
        body = ".".join(_b64(json.dumps(part).encode()) for part in (header, claims))
        return f"{body}.{self._sign(body)}"

    def _sign(self, body: str) -> str:
        return _b64(hmac.digest(self._secret, body.encode(), hashlib.sha256))

    def _is_token(self, given: str) -> bool:
        body, _, signature = given.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(body).encode()):
            return False
        claims = body.partition(".")[2]
        padded = claims + "=" * (-len(claims) % 4)
        return bool(json.loads(base64.urlsafe_b64decode(padded))["exp"] > time.time())
