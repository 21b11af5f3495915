"""Projects, copies, the audit log and the bill of the local server, by the unmodified SDK."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import tinker
from sdk_loops import a_service, fresh, resumed, train
from test_exports import HOUR_S, Wall, a_rest_client
from tinker import types

from tinker_recovery.testing import FaultRule, LocalTinker

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

RESTARTS: tuple[Literal["corrupted", "rollback"], ...] = ("corrupted", "rollback")
PROMPT = types.ModelInput.from_ints([3, 14, 15])
PARAMS = types.SamplingParams(max_tokens=4, seed=1, stop=[])


async def test_a_copy_has_the_same_weights_its_own_expiry_and_no_client_that_trains_it() -> None:
    wall = Wall()
    async with (
        LocalTinker(wall=wall) as local,
        a_service(local) as service,
        a_rest_client(local) as rest,
    ):
        client = await fresh(service)
        await train(client, 0, 3)
        source = (await client.save_state("three", ttl_seconds=2 * HOUR_S)).path
        copy = await rest.copy_weights(source, "archive", ttl_seconds=3 * HOUR_S)
        found = (await rest.search_sessions(types.SessionSearchRequest(limit=1))).sessions[0]
        assert (found.project_id, found.checkpoints_count) == ("archive", 1)
        wall.ahead_s = 2.5 * HOUR_S
        with pytest.raises(tinker.RequestFailedError, match="no checkpoint"):
            await resumed(service, source)
        again = await resumed(service, copy)
        states = [local.run_state(one.model_id) for one in (client, again)]
        assert states[0] == states[1]
        holder = copy.removeprefix("tinker://").partition("/")[0]
        assert local.run_state(holder).weights_digest == ""
        assert not (await rest.get_training_run(holder)).corrupted
        wall.ahead_s = 3.5 * HOUR_S
        with pytest.raises(tinker.NotFoundError):
            await rest.copy_weights(copy, "archive")


async def test_a_copy_whose_reply_is_lost_is_made_once() -> None:
    async with (
        LocalTinker() as local,
        a_service(local) as service,
        a_rest_client(local) as rest,
    ):
        client = await fresh(service)
        source = (await client.save_state("zero")).path
        local.inject(FaultRule("drop", request="copy_weights"))
        copy = await rest.copy_weights(source, "archive")
        assert [fault.request for fault in local.fired] == ["copy_weights"]
        assert len(local.runs()) == 2
        assert copy.startswith(f"tinker://{local.runs()[0]}/")


async def test_a_copy_outlives_the_server(tmp_path: Path) -> None:
    async with (
        LocalTinker(tmp_path) as local,
        a_service(local) as service,
        a_rest_client(local) as rest,
    ):
        client = await fresh(service)
        await train(client, 0, 2)
        copy = await rest.copy_weights((await client.save_state("two")).path, "archive")
        before = local.run_state(client.model_id)
    holder = copy.removeprefix("tinker://").partition("/")[0]
    for restart in RESTARTS:
        async with LocalTinker(tmp_path, restart=restart) as local, a_service(local) as service:
            assert local.run_state(holder).weights_digest == ""
            again = await resumed(service, copy)
            assert local.run_state(again.model_id) == before


async def test_the_bill_says_what_was_trained_sampled_and_saved_and_what_it_costs() -> None:
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    async with (
        LocalTinker(wall=lambda: start.timestamp() + 1) as local,
        a_service(local) as service,
        a_rest_client(local) as rest,
    ):
        client = await fresh(service)
        await train(client, 0, 3)
        await client.save_state("three")
        sampler = await client.save_weights_and_get_sampling_client()
        await sampler.sample(PROMPT, 2, PARAMS)
        session = client.model_id.partition(":")[0]
        await rest.assign_session_project(session, "moved")
        bill = await rest.get_billing_usage(start, start + timedelta(hours=1))
        used: dict[str, Any] = {one.event_info.type: one for one in bill.data}
        assert used["training"].event_info.token_count == 3 * 8
        assert used["sampling_prefill"].event_info.token_count == 3
        assert used["sampling_sample"].event_info.token_count == 8
        assert used["checkpoint"].event_info.count == 1
        assert {one.session_id for one in bill.data} == set(bill.sessions) == {session}
        assert {one.project_id for one in bill.data} == {"moved"}
        trained = used["training"]
        rate = trained.effective_rate_usd_per_million_tokens
        assert trained.estimated_cost_usd == pytest.approx(rate * 24 / 1e6)
        before = await rest.get_billing_usage(start - timedelta(hours=1), start)
        assert before.data == []
        stored = await rest.get_current_checkpoint_storage_usage("moved")
        assert [(one.project_id, one.checkpoint_count) for one in stored.data] == [("moved", 1)]
        assert stored.data[0].size_bytes == local.checkpoints(client.model_id)[0].size_bytes
        assert (await rest.get_current_checkpoint_storage_usage("none")).data == []
        for window in ((start, start), (start, start + timedelta(days=15))):
            with pytest.raises(tinker.BadRequestError, match="at most 14 days"):
                await rest.get_billing_usage(*window)
        with pytest.raises(tinker.BadRequestError, match="a whole hour"):
            await rest.get_billing_usage(start, start + timedelta(minutes=30))


async def test_the_audit_log_says_what_was_done_to_which_checkpoint() -> None:
    async with (
        LocalTinker() as local,
        a_service(local) as service,
        a_rest_client(local) as rest,
    ):
        client = await fresh(service)
        path = (await client.save_state("zero")).path
        await resumed(service, path)
        await rest.delete_checkpoint_from_tinker_path(path)
        log = (await rest.get_audit_log("checkpoints")).entries
        assert [one.event for one in log] == [
            "checkpoint_create",
            "checkpoint_read",
            "checkpoint_delete",
        ]
        assert {one.event_details["tinker_path"] for one in log} == {path}
        assert (await rest.get_audit_log("projects")).entries == []
        assert (await rest.get_audit_log(day=date(2025, 1, 15))).entries == []


async def test_who_asks_is_known_by_the_token() -> None:
    async with LocalTinker(jwt=True) as local, a_rest_client(local) as rest:
        assert (await rest.whoami()).org_urn == "tml:organization:local"
    async with LocalTinker() as local, a_rest_client(local) as rest:
        with pytest.raises(RuntimeError, match="requires JWT"):
            await rest.whoami()


async def test_a_session_is_made_in_the_project_that_its_client_names() -> None:
    async with LocalTinker() as local, a_rest_client(local) as rest:
        service = tinker.ServiceClient(
            project_id="mine", base_url=local.base_url, api_key=local.api_key
        )
        await fresh(service)
        found = (await rest.search_sessions(types.SessionSearchRequest())).sessions
        assert [one.project_id for one in found] == ["mine"]
        await service.close("success")
