"""Addresses within the service: what a service lists becomes part of a path, and nothing else."""

from __future__ import annotations

from urllib.parse import quote

from tinker_recovery.errors import StatusRefused


def route(*parts: str) -> str:
    """A path of these parts, each quoted; a part may have slashes of its own.

    A name with ``?`` would otherwise end where its query begins, and name another checkpoint.

    Raises:
        StatusRefused: A part is empty or made of dots, which leads elsewhere even if quoted.
    """
    segments = [segment for part in parts for segment in part.split("/")]
    for segment in segments:
        if segment in ("", ".", ".."):
            raise StatusRefused(
                f"{'/'.join(parts)!r} has {segment!r}, which is not part of an address"
            )
    return "/".join(quote(segment, safe=":", errors="replace") for segment in segments)
