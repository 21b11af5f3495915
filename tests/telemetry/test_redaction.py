"""Secrets in messages."""

from __future__ import annotations

import pytest

from tinker_recovery.telemetry import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key tml-abc_DEF-123 is refused", "key *** is refused"),
        ("jwt eyJhbGciOi.eyJzdWIi.sig-_x expired", "jwt *** expired"),
        ("sent 'Authorization: Bearer abc.def'", "sent 'Authorization: Bearer ***'"),
        (
            "GET https://s3/x?part=1&X-Amz-Signature=ab12&X-Amz-Credential=me%2F1 failed",
            "GET https://s3/x?part=1&X-Amz-Signature=***&X-Amz-Credential=*** failed",
        ),
        ("https://blob/x?sv=1&sig=ab%2Fc'", "https://blob/x?sv=1&sig=***'"),
        (
            "tinker://session-1:train:0/weights/step-00000005-3d71b600, at step 5",
            "tinker://session-1:train:0/weights/step-00000005-3d71b600, at step 5",
        ),
    ],
)
def test_keys_tokens_and_signatures_are_hidden_and_nothing_else_is(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_the_key_of_the_environment_is_hidden_whatever_it_looks_like(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "a key of some other form")
    assert redact("401 for 'a key of some other form'") == "401 for '***'"
