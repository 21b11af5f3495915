"""What the cheap levels of verification say, from a listing and a status made up here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import LINEAGE, path
from verified import Service, levels

from tinker_recovery import StatusRefused
from tinker_recovery.checkpoints import FileFacts
from tinker_recovery.retention.verifier import CanaryBatch, decode_files, encode_files

SOUND = {"metadata": True, "listing": True, "weights": True}


async def test_a_sound_one_passes_each_cheap_level_and_its_size_is_noted() -> None:
    service = Service()
    sound = service.save(3)
    service.save(4, size_bytes=11)
    assert levels(await service.verify(sound, lineage=LINEAGE)) == SOUND
    assert service.sizes == {sound: 10}
    assert levels(await service.verify(sound, noted=10)) == SOUND


async def test_a_canary_is_asked_only_of_what_has_one_stored() -> None:
    """Nothing is loaded: there is no service that could be."""
    service = Service()
    sound = service.save(3)
    assert levels(await service.verify(sound, canary=CanaryBatch([]))) == SOUND


async def test_where_no_canary_is_given_or_the_metadata_is_not_ours_none_is_asked() -> None:
    service = Service()
    asked = service.save(3)
    service.save(4)
    service.listed["a"][1]["user_metadata"]["tinker_recovery.previous_canary"] = "3:AAAAAA=="
    assert levels(await service.verify(asked)) == SOUND
    theirs = service.save(5, user_metadata={})
    found = levels(await service.verify(theirs, canary=CanaryBatch([])))
    assert found == {**SOUND, "metadata": False}


async def test_what_is_not_listed_has_nothing_said_of_it_but_that() -> None:
    service = Service()
    service.save(3)
    (found,) = await service.verify(path("a", 4), deep=True)
    assert (found.level, found.ok) == ("listing", False)
    assert "does not list it" in found.reason


@pytest.mark.parametrize("deep", [False, True])
async def test_an_objection_of_its_listing_ends_the_look_and_its_size_is_not_noted(
    *, deep: bool
) -> None:
    service = Service()
    empty = service.save(3, size_bytes=0)
    assert levels(await service.verify(empty, deep=deep)) == {"metadata": True, "listing": False}
    assert service.sizes == {}
    other = service.save(4)
    assert levels(await service.verify(other, noted=7)) == {"metadata": True, "listing": False}


async def test_a_size_that_is_not_said_is_not_noted() -> None:
    service = Service()
    quiet = service.save(3, size_bytes=None)
    assert levels(await service.verify(quiet)) == SOUND
    assert service.sizes == {}


async def test_an_objection_of_its_weights_ends_the_look() -> None:
    service = Service()
    service.rank = 16
    wrong = service.save(3)
    assert levels(await service.verify(wrong, deep=True)) == {**SOUND, "weights": False}


async def test_metadata_that_does_not_fit_is_no_reason_not_to_look_further() -> None:
    service = Service()
    theirs = service.save(3)
    assert levels(await service.verify(theirs, lineage="theirs")) == {**SOUND, "metadata": False}


@pytest.mark.parametrize(("parents_step", "ok"), [(2, True), (3, True), (4, False)])
async def test_a_step_below_that_of_where_it_came_from_is_an_objection(
    parents_step: int, *, ok: bool
) -> None:
    service = Service()
    service.save(1, "p")
    parent = service.save(parents_step, "p")
    child = service.save(3, "a", parent=parent)
    assert levels(await service.verify(child)) == {**SOUND, "metadata": ok}


@pytest.mark.parametrize(("status", "levels_left"), [(405, 2), (404, 2)])
async def test_what_the_service_does_not_say_of_the_weights_is_not_looked_at(
    status: int, levels_left: int
) -> None:
    service = Service()
    service.status = status
    assert len(await service.verify(service.save(3))) == levels_left


async def test_of_a_run_that_is_gone_nothing_is_known_and_any_other_refusal_leaves_no_verdict() -> (
    None
):
    service = Service()
    service.run_status = 404
    service.rank = 16
    assert levels(await service.verify(service.save(3))) == {"metadata": True, "listing": True}
    for status in (400, 403):
        service.run_status = status
        with pytest.raises(StatusRefused):
            await service.verify(path("a", 3))


@given(
    files=st.dictionaries(
        st.text(min_size=1),
        st.builds(FileFacts, size_bytes=st.integers(0, 2**60), sha256=st.text("0123456789abcdef")),
    )
)
def test_checksums_are_read_as_they_were_written(files: dict[str, FileFacts]) -> None:
    assert decode_files(encode_files(files)) == files
