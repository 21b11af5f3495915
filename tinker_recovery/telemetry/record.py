"""RecoveryEvent, and its form as a line of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry.util.types import AttributeValue

from tinker_recovery.telemetry import names

_NO_DATE = 60_000_000_000
"""Seconds to a time that no event has, nearer than the last that Python makes a date of. Today's
date is further away if it is in milliseconds."""


@dataclass(frozen=True, slots=True)
class RecoveryEvent:
    """Something that happened to a run.

    Attributes:
        name: One of ``telemetry.names.EVENT_*``.
        run: The run's name; empty if the event is about no single run.
        message: For people.
        fields: Attributes by their telemetry name; plain values, no secrets.
        time: Seconds since the epoch.
    """

    name: str
    run: str
    message: str
    fields: Mapping[str, AttributeValue] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def as_attributes(self) -> dict[str, AttributeValue]:
        """The event as a flat mapping for log records; every key contains a dot."""
        return {names.EVENT: self.name, names.RUN: self.run, **self.fields}


def json_line(event: RecoveryEvent) -> str:
    """The event as one line of JSON, as ``tinker-recovery watch --events`` reads it.

    An object of ``name``, ``run``, ``time``, ``message`` and ``fields``, without a newline::

        Supervisor(policy, on_event=lambda event: print(json_line(event), file=log, flush=True))
    """
    line = {
        "name": event.name,
        "run": event.run,
        "time": event.time,
        "message": event.message,
        "fields": dict(event.fields),
    }
    return json.dumps(line, default=str)


def from_json_line(line: str | bytes) -> RecoveryEvent:
    """The event of a line that :func:`json_line` wrote.

    Raises:
        ValueError: It is not such a line; the message says why.
    """
    try:
        read = json.loads(line)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    expected: dict[str, type | tuple[type, ...]] = {
        "name": str,
        "run": str,
        "time": (int, float),
        "message": str,
        "fields": dict,
    }
    if not isinstance(read, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - a line's content, not an argument's type
    for name, kind in expected.items():
        if not isinstance(read.get(name), kind):
            raise ValueError(f"{name} is missing or of the wrong type")  # noqa: TRY004 - as above
    if not abs(read["time"]) < _NO_DATE:  # NaN as well
        raise ValueError("time is no date in seconds since the epoch")
    return RecoveryEvent(
        read["name"], read["run"], read["message"], read["fields"], float(read["time"])
    )
