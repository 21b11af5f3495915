"""Values and events in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tinker_recovery.costs import Kind
from tinker_recovery.telemetry import names, redact
from tinker_recovery.telemetry.text import as_text

_UNITS = ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s"))
"""Each unit and the next smaller one in seconds, and their names."""


def plain(text: str) -> str:
    """Any text on one line, without secrets, and with control characters as their escapes."""
    return as_text(redact(text).replace("\n", " ").replace("\t", " "))


def duration(seconds: float | None) -> str:
    """A duration in its two largest units."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 9.95:  # noqa: PLR2004 - what one decimal shows as 10.0 is shown without one
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, low, large, small in _UNITS:
        if whole >= unit:
            return f"{whole // unit} {large} {whole % unit // low:02} {small}"
    return f"{whole} s"


def age(seconds: float) -> str:
    """A duration in its largest unit, for a display that is refreshed."""
    return f"{max(0.0, seconds):.0f} s" if seconds < 60 else " ".join(duration(seconds).split()[:2])  # noqa: PLR2004 - seconds in a minute


def iso(seconds: float) -> str:
    """A local time in ISO 8601, with its zone."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(timespec="seconds")


def moment(seconds: float, beside: float | None = None) -> str:
    """A local time with its date and zone; without both if they are those of ``beside``."""
    date, at = iso(seconds).split("T")
    if beside is not None:
        date_beside, at_beside = iso(beside).split("T")
        if date == date_beside and at[_CLOCK:] == at_beside[_CLOCK:]:
            return at[:_CLOCK]
    return f"{date} {at}"


_CLOCK = len("23:59:59")
_EPOCH_KEYS = (
    *("created", "updated", "since", "quiet_since", "held_since", "started", "ended", "saved"),
    *("checkpoint_saved", "last_fault_time", "time"),
)


def with_iso(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for JSON; beside each time in seconds since the epoch the same in ISO 8601."""
    also = {
        f"{key.removesuffix('_time')}_at": None if record[key] is None else iso(record[key])
        for key in _EPOCH_KEYS
        if key in record
    }
    return {**record, **also}


def checkpoint_name(path: str) -> str:
    """The last part of a checkpoint's path."""
    return path.rsplit("/", 1)[-1]


def number(value: float | None) -> str:
    """A whole number in full, any other with four digits; ``-`` for None."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e12 else f"{value:.4g}"  # noqa: PLR2004 - as many digits as fit


_BRIEFLY: Mapping[str, str] = {
    names.EVENT_CHECKPOINT_SAVED: "saved at step {step}",
    names.EVENT_CHECKPOINT_SELECTED: "restores the checkpoint at step {step}",
}
"""Short forms of events, where the step says as much as the path."""


def event_in_words(name: str, message: str, fields: Mapping[str, Any]) -> str:
    """An event on one line, with paths shortened."""
    step, path = fields.get(names.CHECKPOINT_STEP), fields.get(names.CHECKPOINT_PATH)
    if name in _BRIEFLY and step is not None and path is not None:
        return plain(_BRIEFLY[name].format(step=step))
    if isinstance(path, str) and path:
        message = message.replace(path, checkpoint_name(path))
    return plain(message) or plain(name)


_KINDS: Mapping[Kind, str] = {
    "trained": "trained",
    "prompt": "read in prompts",
    "cached": "of prompts read before",
    "sampled": "sampled",
    "checked": "for the canary",
}


def tokens(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Numbers of tokens by kind and model, the run's own being empty; ``-`` for none."""
    return (
        ", ".join(
            f"{amount:,} {words}{f' ({model})' if model else ''}"
            for kind, words in _KINDS.items()
            for model, amount in counts.get(kind, {}).items()
        )
        or "-"
    )


def usd(value: float | None, unpriced: Sequence[str] = ()) -> str:
    """An amount of money, and the models that it leaves out; ``-`` without a table of prices."""
    if value is None:
        return "-"
    left_out = ", ".join(name or "the run's own model" for name in unpriced)
    return f"{value:,.{2 if value >= 1 else 4}f} USD" + (
        f", without {left_out}: no price" if left_out else ""
    )
