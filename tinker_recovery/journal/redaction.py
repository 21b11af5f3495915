"""What never goes into the journal, whoever wrote it into a message."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_SIGNED = re.compile(
    r"([?&][^=&\s]*(?:signature|credential|token|sig|key)[^=&\s]*=)[^&\s\"']+", re.IGNORECASE
)


def redactor(secrets: Sequence[str]) -> Callable[[str], str]:
    """Replaces these texts, and the signing parts of URLs, by ``***``."""
    known = [re.escape(secret) for secret in secrets if secret]
    pattern = re.compile("|".join(known)) if known else None

    def redact(text: str) -> str:
        text = _SIGNED.sub(r"\1***", text)
        return pattern.sub("***", text) if pattern else text

    return redact
