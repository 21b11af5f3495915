"""What the doctor says of whether a service fences, at services that do and that do not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import tinker
from pydantic import SecretStr
from sdk_loops import fresh
from virtual import FAST_CLOCK

from tinker_recovery.doctor.facts import Fact, fact
from tinker_recovery.doctor.fencing import try_fencing
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service.http import ServiceHttp
from tinker_recovery.service.status import session_id_of
from tinker_recovery.testing import FaultRule, LocalTinker


@asynccontextmanager
async def trained(local: LocalTinker) -> AsyncIterator[tuple[ServiceHttp, tinker.TrainingClient]]:
    """Our own HTTP client of a service, and a client that trains there."""
    endpoint = Endpoint(local.base_url, SecretStr(local.api_key))
    async with StatusReader(endpoint, timeout_s=5.0) as reader:
        service = local.service()
        try:
            yield reader.http, await fresh(service)
        finally:
            with suppress(tinker.NotFoundError):  # where sessions cannot be finished
                await service.close("success")


async def found(local: LocalTinker, *, session: str = "") -> Fact:
    """What is found there; ``session`` is announced instead of the one that is trained in."""
    async with trained(local) as (http, client):
        session = session or session_id_of(client.model_id)
        return await try_fencing(http, client, session, clock=FAST_CLOCK, close_s=5.0)


async def test_where_a_finished_session_is_refused_one_trainer_is_promised_on_any_machines(
    local: LocalTinker,
) -> None:
    said = await found(local)
    assert (said.what, said.found, said.detail) == ("one trainer", "on any machine", "")
    assert "anywhere" in said.promise
    assert len(local.sessions()) == 1 + 4, "two claims, a note, and a take-over"
    assert "active" not in local.sessions().values()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dialect": "bare"}, "sessions/search: HTTP 404"),
        ({"missing": ("search_sessions",)}, "sessions/search: HTTP 404"),
        ({"missing": ("session_heartbeat",)}, "takes no heartbeats"),
        ({"missing": ("finish",)}, "does not finish sessions"),
    ],
)
async def test_where_a_route_is_missing_only_machines_that_share_the_journal_are_promised(
    options: Any, why: str
) -> None:
    async with LocalTinker(**options) as local:
        said = await found(local)
    assert said.found == "by the journal"
    assert why in said.detail
    assert "that share no journal" in said.promise


async def test_a_service_that_lists_late_is_promised_only_if_it_lists_in_order() -> None:
    async with LocalTinker(listing_delay_s=0.3) as local:
        said = await found(local)
    assert said.found == "listed late"
    assert "in the order" in said.promise


async def test_a_service_that_lists_too_late_counts_as_one_without_search() -> None:
    async with LocalTinker(listing_delay_s=60.0) as local:
        said = await found(local)
    assert said.found == "by the journal"
    assert "does not find sessions by their metadata" in said.detail


async def test_where_training_passes_after_a_take_over_the_paused_trainer_is_warned_of(
    local: LocalTinker,
) -> None:
    """As at a service that refuses a finished session's heartbeats, but not its training."""
    said = await found(local, session="session-of-no-trainer")
    assert said.found == "claims alone"
    assert "paused" in said.promise


async def test_an_error_that_is_no_refusal_does_not_count_as_fencing(local: LocalTinker) -> None:
    local.inject(FaultRule("fail", request="forward_backward"))
    said = await found(local, session="session-of-no-trainer")
    assert said.found == "failed"
    assert said.detail
    assert "Nothing is known of it" in said.promise


async def test_a_service_that_stops_answering_is_a_failed_trial_and_no_error(
    local: LocalTinker,
) -> None:
    async with trained(local) as (http, client):
        session = session_id_of(client.model_id)
        local.begin_outage(status=503)
        said = await try_fencing(http, client, session, clock=FAST_CLOCK, close_s=5.0, limit_s=0.5)
        local.end_outage()
    assert (said.found, said.detail) == ("failed", "it took longer than 0.5 s")


def test_the_page_on_machines_says_what_may_be_relied_on_for_each_finding() -> None:
    page = (Path(__file__).parents[2] / "docs" / "machines.md").read_text()
    _, _, table = page.partition("| found |")
    rows = re.findall(r"^\| `([a-z ]+)` \|", table.partition("\n\n")[0], re.MULTILINE)
    assert rows == ["on any machine", "listed late", "claims alone", "by the journal", "no"]
    assert len({fact("one trainer", row).promise for row in rows}) == len(rows)
