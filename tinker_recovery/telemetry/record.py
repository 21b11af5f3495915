"""The record of something that happened to a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry.util.types import AttributeValue

from tinker_recovery.telemetry import names


@dataclass(frozen=True, slots=True)
class RecoveryEvent:
    """Something that happened to a run.

    Attributes:
        name: One of ``telemetry.names.EVENT_*``.
        run: The run's name; empty where it concerns no single run.
        message: The event in words.
        fields: Attributes by their telemetry name; plain values, no secrets.
        time: Seconds since the epoch.
    """

    name: str
    run: str
    message: str
    fields: Mapping[str, AttributeValue] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def as_attributes(self) -> dict[str, AttributeValue]:
        """The event as a flat mapping, for log records and spans.

        Every key has a dot in it, so none can be one of a ``logging.LogRecord``'s own.
        """
        return {names.EVENT: self.name, names.RUN: self.run, **self.fields}
