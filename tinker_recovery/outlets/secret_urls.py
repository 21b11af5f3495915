"""Addresses that are secrets: whoever has that of a webhook or of a monitor can write to it."""

from __future__ import annotations

import logging
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from tinker_recovery.errors import UsageError
from tinker_recovery.outlets.worker import in_worker
from tinker_recovery.telemetry.redaction import hide, hide_userinfo

_HOST = re.compile(r"(localhost|[\w-]+(\.[\w-]+)+|\[[0-9a-fA-F:.]+\])?(:\d+)?")
"""A server's name. Another ``netloc`` is a token or a topic, as in ``tgram://TOKEN/CHAT``."""

_SURE = 16
"""A part of this length is no ordinary word."""

_LOGGERS = ("apprise", "urllib3.connectionpool", "urllib3.util.retry", "requests")
"""What logs the addresses that a notification goes to."""


def hide_url(url: str) -> None:
    """Hide an address and the parts of it that are no ordinary words or hosts, wherever they occur.

    Raises:
        ValueError: It cannot be taken apart.
    """
    try:
        parts = urlsplit(url)
        values = [value for _, value in parse_qsl(parts.query)]
    except ValueError:
        hide(url)
        raise
    hide(url, url.rstrip("/"))
    userinfo, at, host = parts.netloc.rpartition("@")
    if at:
        hide_userinfo(userinfo)
    pieces = [each for each in parts.path.split("/") if each]
    if not _HOST.fullmatch(host):
        pieces += [host, *host.split(":")]
    for piece in [*pieces, *values, parts.fragment]:
        # A short word (`notify`, `v1`) must not vanish from every text.
        hide(piece, unquote(piece), sure=len(piece) >= _SURE)


def scheme_of(url: str) -> str:
    """The part of an address that may be shown."""
    scheme, colon, _ = url.partition("://")
    return f"{scheme}://..." if colon and re.fullmatch(r"[a-zA-Z][\w+.-]{0,20}", scheme) else "..."


def check_http(name: str, url: object) -> str:
    """An http or https address, hidden from now on.

    Raises:
        UsageError: It is none. The error does not show it.
    """
    if isinstance(url, str):
        try:
            hide_url(url)
            parts = urlsplit(url)
            # A blank, such as the end of a file's line, no request takes: each would fail later.
            whole = re.search(r"[\x00-\x20\x7f]", url) is None
            if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and whole:
                return url
        except ValueError:
            pass
    raise UsageError(f"{name} is not allowed: an http:// or https:// address (not shown here)")


class _NotFromWorkers(logging.Filter):
    """Drops what a library logs while it sends for a worker; the worker says what has failed."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to let a record pass."""
        del record
        return not in_worker()


_filter = _NotFromWorkers()


def silence_libraries() -> None:
    """Have no library's log show an address of ours. The user's own use of it logs as before."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)
