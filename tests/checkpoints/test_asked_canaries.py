"""What the canary of a verification is compared with, and what its answer says."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import pytest
from verified import Service, levels, refused

from tinker_recovery import StatusUnavailable
from tinker_recovery.checkpoints import Canary
from tinker_recovery.checkpoints.prompt import PromptFacts, digest_of, prompt_of
from tinker_recovery.retention.verifier import CanaryBatch
from tinker_recovery.service.export import Limits

SOUND = {"metadata": True, "listing": True, "weights": True}
PROBE = prompt_of([1, 2, 3])
OWN = Canary.of((-1.0, -2.0))
"""What the service answers as well."""
OTHER = Canary.of((-1.0, -2.5))


def a_service(stored: Canary | None, about: str = digest_of(PROBE)) -> tuple[Service, str]:
    """A service, and a checkpoint of it whose canary is stored with the next one."""
    service = Service()
    path = service.save(3)
    service.save(9, "b", user_metadata={})  # of a run of its own
    service.listed["a"].append(service.listed.pop("b")[0])
    if stored is not None:
        said = {"previous_canary": (3, str(stored)), "canary_prompt": PromptFacts(about, 0.0)}
        service.save(4, about=said)
    return service, path


async def test_an_answer_that_is_the_stored_one_to_the_bit_is_in_order() -> None:
    service, path = a_service(OWN)
    found = await service.verify(path, canary=CanaryBatch(PROBE))
    assert levels(found) == {**SOUND, "canary": True}
    assert found[-1].reason == "the logprobs are equal to the bit"
    assert service.prompts == [PROBE]
    assert service.log[1:] == ["open 1", "close 1: success"], "and nothing is exported"


@pytest.mark.parametrize(("tolerance", "ok"), [({}, False), ({"tolerance": 0.5}, True)])
async def test_another_answer_is_an_objection_unless_the_tolerance_allows_for_it(
    tolerance: dict[str, float], *, ok: bool
) -> None:
    service, path = a_service(OTHER)
    found = await service.verify(path, canary=CanaryBatch(PROBE, **tolerance))
    assert levels(found) == {**SOUND, "canary": ok}


async def test_an_answer_to_another_prompt_is_not_compared() -> None:
    service, path = a_service(OTHER, "another prompt")
    found = await service.verify(path, canary=CanaryBatch(PROBE))
    assert levels(found) == {**SOUND, "canary": True}
    assert "another one" in found[-1].reason


async def test_what_the_journal_has_counts_where_nothing_is_listed_and_only_there() -> None:
    service, path = a_service(None)
    service.canaries = {path: str(OTHER)}
    found = await service.verify(path, canary=CanaryBatch(PROBE))
    assert levels(found) == {**SOUND, "canary": False}
    service, path = a_service(OWN)
    service.canaries = {path: str(OTHER)}
    found = await service.verify(path, canary=CanaryBatch(PROBE))
    assert levels(found) == {**SOUND, "canary": True}


async def test_a_deep_look_asks_the_canary_too_and_only_where_there_is_one() -> None:
    service, path = a_service(OWN)
    for canary, asked in ((CanaryBatch(PROBE), {"canary": True}), (None, {})):
        found = await service.verify(path, canary=canary, deep=True)
        assert levels(found) == {**SOUND, **asked, "bytes": True}
        assert [each.level for each in found][-1] == "bytes"
    service, path = a_service(None)
    found = await service.verify(path, canary=CanaryBatch(PROBE), deep=True)
    assert levels(found) == {**SOUND, "bytes": True}
    assert service.prompts == []


@pytest.mark.parametrize(("deep", "level"), [(False, "canary"), (True, "bytes")])
async def test_what_is_not_loaded_is_an_objection_at_the_level_that_was_asked_for(
    level: str, *, deep: bool
) -> None:
    service, path = a_service(OWN)
    service.refusals = [refused(HTTPStatus.NOT_FOUND)] * 2
    found = await service.verify(path, canary=CanaryBatch(PROBE), deep=deep)
    assert levels(found) == {**SOUND, level: False}


async def test_an_answer_that_is_no_number_is_an_objection() -> None:
    service, path = a_service(OWN)
    service.answer = (-1.0, math.nan)
    found = await service.verify(path, canary=CanaryBatch(PROBE))
    assert levels(found) == {**SOUND, "canary": False}
    assert "NaN" in found[-1].reason


@pytest.mark.parametrize("answer", [None, ValueError("broken")])
async def test_no_answer_says_nothing_of_the_checkpoint(answer: Any) -> None:
    service, path = a_service(OWN)
    service.answer = answer
    with pytest.raises(StatusUnavailable, match="the canary could not be asked"):
        await service.verify(path, canary=CanaryBatch(PROBE), limits=Limits(answer_s=0.01))
    assert service.log[-1] == "close 1: errored"
