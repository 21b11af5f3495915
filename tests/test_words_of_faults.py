"""What the event of a fault says: as much as is known of this one."""

from __future__ import annotations

from typing import Any

import pytest

from tinker_recovery.errors import FaultError
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.recovery.words import detected


def _said(kind: Kind, **given: Any) -> str:
    return detected(Fault("r", 1, "a", RULES[kind], DetectedBy.CANARY, 9, **given))


def test_what_was_decided_for_a_reason_is_said_with_that_reason_and_no_other() -> None:
    why = "the service was out of reach, so nothing can tell which weights it has kept"
    for kind in (Kind.ROLLED_BACK, Kind.GROUP_REWOUND):
        said = _said(kind, error=FaultError(why, kind=kind.value))
        assert said == f"{kind.value} at step 9: {why}"


@pytest.mark.parametrize("kind", [Kind.SILENCE, Kind.SAMPLING_SILENCE])
def test_a_silence_is_said_with_how_long_it_has_lasted(kind: Kind) -> None:
    assert _said(kind, silent_s=312.34).endswith("(silent for 312.3 s)")
    assert "silent for" not in _said(Kind.CORRUPTED, silent_s=312.34)


def test_of_a_fault_that_nothing_more_is_known_of_the_table_says_the_reason() -> None:
    for kind, rule in RULES.items():
        assert _said(kind) == f"{kind.value} at step 9: {rule.reason}"


@pytest.mark.parametrize("kind", [Kind.SAVE_REFUSED, Kind.METADATA_REFUSED])
def test_of_a_refused_save_it_is_said_why_the_run_goes_back(kind: Kind) -> None:
    said = _said(kind)
    assert "the SDK's client cannot be used after that" in said
    assert "another is made from the newest checkpoint" in said
