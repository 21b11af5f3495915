"""Routes that not every service has, and what is then not done: said once for each service."""

from __future__ import annotations

import logging

import tinker

from tinker_recovery.errors import causes
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

NO_SUCH_ROUTE = frozenset({404, 405, 501})
"""What a service without a route answers."""

_said: set[tuple[str, str]] = set()


def say_missing(base_url: str, route: str, consequence: str) -> None:
    """Log, once in this process for each service and route, what is not done without it.

    Args:
        base_url: The service.
        route: What was asked for.
        consequence: What is then not done, and what happens instead.
    """
    if (base_url, route) not in _said:
        _said.add((base_url, route))
        logger.info("%s does not answer %s: %s", base_url, route, consequence)


def is_missing(error: BaseException) -> bool:
    """Whether a request of the SDK's failed as it does where the service has no such route."""
    return any(
        isinstance(each, tinker.APIStatusError) and each.status_code in NO_SUCH_ROUTE
        for each in causes(error)
    )


def say_no_finish(base_url: str) -> None:
    """Say that sessions cannot be finished there."""
    say_missing(
        base_url, "sessions/finish", "sessions stay open until the service's own timeout ends them"
    )


def say_no_search(base_url: str) -> None:
    """Say that sessions cannot be searched there."""
    say_missing(
        base_url,
        "sessions/search",
        "a failed session is noticed by a failed call or the run's status, and a process that may "
        "still be training a run by the time of the run's last request",
    )
