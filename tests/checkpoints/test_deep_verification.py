"""What a look into a checkpoint's bytes finds, and how often, and in which sessions it looks."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest
import tinker
from tinker.types import RequestErrorCategory
from verified import Files, Service, levels, refused, whole

from tinker_recovery import StatusRefused, StatusUnavailable
from tinker_recovery.checkpoints import Finding
from tinker_recovery.retention.verifier import Progress

SOUND = {"metadata": True, "listing": True, "weights": True}
GOOD, BETTER = {"a.safetensors": whole(1.0, 2.0)}, {"a.safetensors": whole(1.0, 3.0)}
TORN = {"a.safetensors": whole(1.0, 2.0)[:-1]}
NOT_THE_SAME = "this service's exports are not the same twice"


async def look(service: Service, **asked: Any) -> Finding:
    """What is found at the bytes of its one checkpoint, all else being in order."""
    path = service.listed["a"][0]["tinker_path"]
    *others, found = await service.verify(path, deep=True, **asked)
    assert levels(others) == SOUND
    assert found.level == "bytes"
    return found


def a_service(*exports: Files | Exception) -> Service:
    service = Service()
    service.save(3)
    service.exports = list(exports) or [GOOD]
    return service


def sessions(service: Service) -> list[str]:
    return [each for each in service.log if each.startswith(("open", "close"))]


async def test_what_is_whole_is_looked_at_in_one_session_and_its_checksums_are_noted() -> None:
    service = a_service(GOOD | {"adapter_config.json": b"{}"})
    found = await look(service)
    assert (found.ok, found.looked) == (True, True)
    assert "bytes in 1 file are whole" in found.reason
    assert sessions(service) == ["open 1", "close 1: success"]
    (deleted,) = [each for each in service.log if each.endswith("deleted")]
    assert deleted.startswith("external_weights/")
    noted = service.checksums
    assert len(noted) == 1
    assert "a.safetensors" in next(iter(noted.values()))
    assert (await look(service)).ok, "an export of the same bytes has the same checksums"
    assert service.checksums == noted


async def test_a_save_of_the_users_is_not_compared_with_what_its_name_had_before() -> None:
    service = a_service(GOOD)
    (entry,) = service.listed["a"]
    entry["user_metadata"]["tinker_recovery.saved_by"] = "user"
    assert (await look(service)).ok
    service.exports = [BETTER]
    entry["size_bytes"] += 1
    assert (await look(service)).ok


@pytest.mark.parametrize("size", [300, None])
async def test_how_far_a_look_has_come_is_said_with_what_the_service_says_of_its_size(
    size: int | None,
) -> None:
    service = a_service()
    service.export_bytes = size
    seen: list[Progress] = []
    assert (await look(service, progress=seen.append)).ok
    assert seen == [
        Progress("loading", 0, None),
        Progress("exporting", 0, None),
        Progress("downloading", 100, size),
        Progress("checking", 0 if size is None else size, size),
    ]
    assert service.listed_bytes == size, "no more than that is downloaded"


# -- what the service does not load -----------------------------------------------------------


@pytest.mark.parametrize("status", [HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST])
async def test_it_is_asked_twice_to_load_it_before_its_refusal_counts(status: HTTPStatus) -> None:
    service = a_service()
    service.refusals = [refused(status)]
    assert (await look(service)).ok
    service.log.clear()
    service.refusals = [refused(status, "one"), refused(status, "two")]
    found = await look(service)
    assert not found.ok
    assert found.reason.startswith("the service does not load it: ")
    assert "two" in found.reason
    assert sessions(service) == []
    assert len(service.log) == 2


async def test_what_says_nothing_of_the_checkpoint_is_an_error_and_is_not_tried_again() -> None:
    service = a_service()
    service.refusals = [refused(HTTPStatus.SERVICE_UNAVAILABLE), refused(HTTPStatus.NOT_FOUND)]
    with pytest.raises(StatusUnavailable, match=r"3 could not be loaded: .*InternalServerError"):
        await look(service)
    assert len(service.refusals) == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (refused(HTTPStatus.UNAUTHORIZED), StatusRefused),
        (refused(HTTPStatus.SERVICE_UNAVAILABLE), StatusUnavailable),
        (ValueError("no"), StatusUnavailable),
    ],
)
async def test_an_error_is_one_of_the_services_by_whether_trying_again_may_help(
    error: Exception, kind: type[Exception]
) -> None:
    service = a_service(error)
    with pytest.raises(kind, match="3 could not be exported") as raised:
        await look(service)
    assert type(raised.value) is kind
    assert raised.value.__cause__ is error
    assert sessions(service) == ["open 1", "close 1: errored"]


async def test_what_is_said_of_the_service_already_is_said_as_it_is() -> None:
    error = StatusRefused("no", status_code=418)
    with pytest.raises(StatusRefused) as raised:
        await look(a_service(error))
    assert raised.value is error


# -- what an export says ----------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_where_the_service_has_no_export_nothing_is_looked_at(status: int) -> None:
    found = await look(a_service(refused(HTTPStatus(status))))
    assert (found.ok, found.looked) == (True, False)
    assert "no export" in found.reason


async def test_the_disks_trouble_is_not_the_services_and_a_service_too_slow_is() -> None:
    service = a_service()
    service.download_error = OSError("the disk is full")
    with pytest.raises(OSError, match="the disk is full"):
        await look(service)
    service.download_error = TimeoutError("too slow")
    with pytest.raises(StatusUnavailable, match="could not be exported"):
        await look(service)
    assert service.checksums == {}


async def test_an_export_without_a_file_of_tensors_cannot_be_judged() -> None:
    with pytest.raises(StatusRefused, match=r"holds b\.bin, c\.bin, and no \.safetensors file"):
        await look(a_service({"b.bin": b"", "c.bin": b""}))


async def test_an_objection_is_looked_into_again_in_another_session() -> None:
    service = a_service(TORN, GOOD)
    found = await look(service)
    assert found.ok, "the export was damaged on its way"
    assert "are whole" in found.reason
    assert NOT_THE_SAME not in found.reason
    assert sessions(service) == ["open 1", "close 1: success", "open 2", "close 2: success"]
    noted = service.checksums
    assert noted
    service.exports = [GOOD]
    await look(service)
    assert service.checksums == noted, "what was whole was noted"


async def test_what_is_damaged_twice_is_an_objection_and_no_checksum_is_noted() -> None:
    service = a_service(TORN)
    found = await look(service)
    assert not found.ok
    assert "it is cut short" in found.reason
    assert service.checksums == {}


async def test_what_cannot_be_loaded_a_second_time_is_an_objection() -> None:
    service = a_service(TORN)
    seen = 0

    def after_the_first(now: Progress) -> None:
        nonlocal seen
        seen += now.phase == "loading"
        if seen > 1:
            service.refusals = [refused(HTTPStatus.NOT_FOUND)]

    found = await look(service, progress=after_the_first)
    assert not found.ok
    assert "does not load it" in found.reason
    assert service.checksums == {}


# -- what was recorded at first sight ---------------------------------------------------------


async def noted(*files: Files) -> Service:
    """A service with the checksums of a first look, and the exports to come."""
    service = a_service(GOOD)
    await look(service)
    service.exports = list(files)
    return service


async def test_other_bytes_than_at_first_sight_are_an_objection_if_they_are_the_same_twice() -> (
    None
):
    service = await noted(BETTER)
    before = service.checksums
    found = await look(service)
    assert not found.ok
    assert "a.safetensors: it has SHA-256 " in found.reason
    assert "was recorded at first sight" in found.reason
    assert service.checksums == before


async def test_where_two_exports_differ_the_checksums_say_nothing() -> None:
    service = await noted(BETTER, {"a.safetensors": whole(4.0)})
    before = service.checksums
    found = await look(service)
    assert (found.ok, found.looked) == (True, True)
    assert "are whole" in found.reason
    assert NOT_THE_SAME in found.reason
    assert service.checksums == before


async def test_the_bytes_of_first_sight_at_the_second_look_are_in_order() -> None:
    found = await look(await noted(BETTER, GOOD))
    assert found.ok
    assert NOT_THE_SAME not in found.reason


async def test_what_is_damaged_is_said_to_be_so_and_not_that_its_checksum_differs() -> None:
    found = await look(await noted(TORN))
    assert not found.ok
    assert "it is cut short" in found.reason
    assert "at first sight" not in found.reason


@pytest.mark.parametrize("exports", [(TORN, BETTER), (BETTER, TORN)])
async def test_of_a_damaged_export_and_another_one_neither_excuses_the_other(
    exports: tuple[Files, Files],
) -> None:
    found = await look(await noted(*exports))
    assert not found.ok
    assert NOT_THE_SAME not in found.reason


async def test_a_file_that_is_gone_is_an_objection_and_one_more_is_none() -> None:
    service = await noted({"b.safetensors": whole(1.0)})
    found = await look(service)
    assert not found.ok
    assert "a.safetensors: it has SHA-256 none, for it is gone" in found.reason
    service = await noted(GOOD | {"b.safetensors": whole(1.0)})
    before = service.checksums
    assert (await look(service)).ok
    assert service.checksums == before, "what first sight has recorded stays"


async def test_a_request_that_the_service_lays_to_the_user_refuses_the_checkpoint() -> None:
    for category, kind in (
        (RequestErrorCategory.User, None),
        (RequestErrorCategory.Server, StatusUnavailable),
    ):
        service = a_service()
        failed = tinker.RequestFailedError("no", request_id="1", category=category)
        service.refusals = [failed, failed]
        if kind is None:
            assert not (await look(service)).ok
        else:
            with pytest.raises(kind):
                await look(service)
