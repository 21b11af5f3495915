"""What never goes into a log, a span or an event, whoever wrote it into a message.

A service or a proxy may quote a key, a token or a signed address in its error, and errors are told.
"""

from __future__ import annotations

import os
import re

from opentelemetry.util.types import AttributeValue

_HIDDEN = "***"

_SIGNED = re.compile(
    r"([?&][^=&\s]*(?:signature|credential|token|sig|key)[^=&\s]*=)[^&\s\"']+", re.IGNORECASE
)
"""The signing parts of an address."""

_TOKEN = re.compile(
    r"\btml-[A-Za-z0-9_-]{4,}"  # a Tinker API key
    r"|\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"  # the JWT it is exchanged for
    r"|(?<=\bBearer )[^\s\"',]+",
)

_KEY_VARIABLE = "TINKER_API_KEY"


def redact(text: str) -> str:
    """The text with keys, tokens and signatures replaced by ``***``."""
    key = os.environ.get(_KEY_VARIABLE)
    if key:
        text = text.replace(key, _HIDDEN)
    return _TOKEN.sub(_HIDDEN, _SIGNED.sub(rf"\1{_HIDDEN}", text))


def redact_value(value: AttributeValue) -> AttributeValue:
    """An attribute with its text redacted; numbers stay as they are."""
    return redact(value) if isinstance(value, str) else value
