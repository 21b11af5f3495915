"""Export by the OTEL_* variables alone, where the program has set up none of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal
from opentelemetry.util._once import Once

from tinker_recovery.errors import UsageError
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.otlp import configure_metrics, configure_tracing

logger = logging.getLogger(names.SCOPE)

OFF: Final = "TINKER_RECOVERY_OTEL"
"""The variable that turns this off, with ``0``, ``false``, ``no`` or ``off``."""


def says_to_export() -> bool:
    """Whether a variable names a collector, and none turns the export off."""
    if os.environ.get(OFF, "").strip().lower() in {"0", "false", "no", "off"}:
        return False
    return _has_endpoint("TRACES") or _has_endpoint("METRICS")


def export_by_environment() -> None:
    """Set up the export of traces and metrics that the variables ask for.

    A provider that is set already is the program's, and stays as it is: what we emit goes there.
    One that the program sets later takes the place of ours.
    Never raises: the variables may be meant for others, and training comes first.
    """
    if _has_endpoint("TRACES") and isinstance(
        trace.get_tracer_provider(), trace.ProxyTracerProvider
    ):
        _try("traces", configure_tracing)
        _may_be_replaced(trace, "_TRACER_PROVIDER_SET_ONCE")
    # The API has no public name for what stands for a provider until one is set.
    if _has_endpoint("METRICS") and "_Proxy" in type(metrics.get_meter_provider()).__name__:
        _try("metrics", configure_metrics)
        _may_be_replaced(_internal, "_METER_PROVIDER_SET_ONCE")


def _may_be_replaced(module: ModuleType, name: str) -> None:
    """Let the program set a provider of its own later on, in place of this one of nobody's asking.

    OpenTelemetry takes one provider a process, so its would be refused. There is no public way.
    """
    if hasattr(module, name):
        setattr(module, name, Once())


def _try(signal: str, configure: Callable[[], Any]) -> None:
    try:
        logger.info("%r: by the OTEL_* variables (%s=0 turns it off)", configure(), OFF)
    except UsageError as error:
        if isinstance(error.__cause__, ImportError):
            logger.info("%s are not exported: %s", signal, error)
        else:
            logger.warning("%s are not exported: %s", signal, error)
    except Exception as error:  # noqa: BLE001 - what the SDK raises for a variable that it cannot read
        logger.warning("%s are not exported: %s: %s", signal, type(error).__name__, error)


def _has_endpoint(signal: str) -> bool:
    own = f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"
    return any(os.environ.get(name, "").strip() for name in (own, "OTEL_EXPORTER_OTLP_ENDPOINT"))
