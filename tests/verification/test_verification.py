"""What is found out about a checkpoint, from its listing down to its bytes, at a real server."""

from __future__ import annotations

import functools
import logging
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import anyio
import anyio.to_thread
import httpx
import pytest
import tinker
from inspection import folder_of, notebook_of, place_of_file
from loops import ADAM, MODEL, SEED, batch
from opentelemetry import context
from pydantic import SecretStr

from tinker_recovery import (
    RecoveryPolicy,
    StatusError,
    StatusRefused,
    StatusUnavailable,
    UsageError,
)
from tinker_recovery.checkpoints import Canary, Finding, checkpoint_metadata
from tinker_recovery.checkpoints.canary import answer_of
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.retention.verifier import CanaryBatch, Progress, Verifier, encode_files
from tinker_recovery.service import Endpoint, StatusReader, TinkerBackend
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.export import Limits
from tinker_recovery.testing import Damage, FaultRule, LocalTinker

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries")

ALL = ["metadata", "listing", "weights", "bytes"]
PROBE = batch(77)


@pytest.fixture(autouse=True)
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where temporary folders are made; each test leaves none."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


async def saved(local: LocalTinker, *, rank: int = 64, names: Iterable[str] = ("s",)) -> str:
    """Checkpoints after two steps; the path of the first."""
    service = local.service()
    pending = await anyio.to_thread.run_sync(
        lambda: service.create_lora_training_client(MODEL, rank=rank, seed=SEED)
    )
    client: tinker.TrainingClient = await pending
    for step in range(2):
        forward = client.forward_backward(batch(step), "cross_entropy")
        update = client.optim_step(ADAM)
        await forward
        await update
    canary = Canary.of(answer_of(await client.forward(PROBE, "cross_entropy")))
    about = functools.partial(
        checkpoint_metadata, lineage="l", attempt="a", parent=None, saved_by="schedule"
    )
    saving = [client.save_state(name, user_metadata=about(step=2)) for name in names]
    paths = [(await each).path for each in saving]
    # What its canary answers is known only behind it, and told by the next one.
    later = about(step=3, previous_canary=(2, str(canary)))
    await client.save_state("t", user_metadata=later)
    await service.close("success")
    return str(paths[0])


class Desk:
    """Somebody who verifies checkpoints, and a look at what is left at the service."""

    def __init__(self, local: LocalTinker, verifier: Verifier, reader: StatusReader) -> None:
        self.local = local
        self.reader = reader
        self.verifier = verifier
        self.verify = verifier.verify

    async def bytes(self, path: str, progress: Callable[[Progress], object] = print) -> Finding:
        """The verdict on its bytes, the others being in order."""
        *others, last = await self.verify(path, deep=True, progress=progress)
        assert all(each.ok for each in others)
        assert last.level == "bytes"
        return last

    async def exports(self) -> list[str]:
        """The exports there are."""
        listed = [each async for each in self.reader.every_checkpoint()]
        return [each.tinker_path for each in listed if each.checkpoint_type == "external"]

    async def nothing_is_left(self) -> None:
        assert await self.exports() == []
        assert "active" not in self.local.sessions().values()


@asynccontextmanager
async def a_desk(local: LocalTinker, *, limits: Limits | None = None) -> AsyncIterator[Desk]:
    endpoint = Endpoint(local.base_url, SecretStr(local.api_key))
    async with (
        StatusReader(endpoint, timeout_s=5.0) as reader,
        Notebook(Journal(None, service=local.base_url)) as notebook,
    ):
        collaborators = Collaborators(
            RecoveryPolicy(),
            TinkerBackend(local.service),
            reader,
            notebook,
        )
        verifier = Verifier(collaborators, limits=limits or Limits(close_s=2.0))
        yield Desk(local, verifier, reader)


@pytest.fixture
def lenient_server() -> LocalTinker:
    return LocalTinker(lenient=True)


async def test_a_whole_checkpoint_passes_every_level_and_nothing_is_left(
    local: LocalTinker,
) -> None:
    path = await saved(local)
    seen: list[Progress] = []
    async with a_desk(local) as desk:
        shallow = await desk.verify(path)
        assert [(each.level, each.ok) for each in shallow] == [(one, True) for one in ALL[:3]]
        assert len(local.sessions()) == 1, "the cheap levels open no session"
        deep = await desk.verify(path, deep=True, progress=seen.append)
        assert [(each.level, each.ok) for each in deep] == [(one, True) for one in ALL]
        assert "bytes in 1 file are whole" in deep[-1].reason
        phases = list(dict.fromkeys(each.phase for each in seen))
        assert phases == ["loading", "exporting", "downloading", "checking"]
        assert seen[-1].done_bytes == seen[-1].total_bytes
        assert seen[-1].done_bytes > 2 * 64 * 64 * 4
        assert local.stats.by_route["download"] == 2
        again = await desk.verify(path, deep=True, canary=CanaryBatch(PROBE))
        assert [(each.level, each.ok) for each in again] == [
            (one, True) for one in [*ALL[:3], "canary", "bytes"]
        ]
        assert again[-2].reason == "the logprobs are equal to the bit"
        await desk.nothing_is_left()


REFUSED = "the service does not load it"
CAUGHT: dict[Damage, tuple[str, str]] = {
    "truncated": ("bytes", REFUSED),
    "trailing_byte": ("bytes", REFUSED),
    "header_flip": ("bytes", REFUSED),
    "hole": ("bytes", REFUSED),
    "deleted": ("bytes", REFUSED),
    "zero_tail": ("bytes", "v_proj.lora_B.weight' on, as if it had not been written"),
    "bit_flip": ("bytes", "was recorded at first sight"),
    "nan": ("bytes", "lora_B.weight' holds NaN or infinite values"),
    "no_metadata": ("metadata", "it has no tinker_recovery metadata"),
}
"""The level that catches it, and its words. The service is lenient: by itself it loads nothing that
was damaged."""


def test_every_damage_is_caught_somewhere() -> None:
    assert set(CAUGHT) == set(get_args(Damage))


async def test_every_damage_is_caught_by_the_level_that_should(
    lenient_server: LocalTinker,
) -> None:
    async with lenient_server as local, a_desk(local) as desk:
        first = await saved(local, names=CAUGHT)
        for how, (level, reason) in CAUGHT.items():
            path = f"{first.rpartition('/')[0]}/{how}"
            if how == "bit_flip":
                assert (await desk.bytes(path)).ok, "a checksum is recorded at first sight"
            local.damage(path, how)
            against = [each for each in await desk.verify(path, deep=True) if not each.ok]
            assert [each.level for each in against] == [level], how
            assert reason in against[0].reason
        noted = (await notebook_of(desk.verifier).notes()).files
        # Else the whole ones would be the ones that differ from what was recorded.
        assert {path.rpartition("/")[2] for path in noted} == {"bit_flip", "no_metadata"}
        await desk.nothing_is_left()


async def test_a_flipped_bit_nobody_has_a_checksum_of_shows_in_the_canary(
    lenient_server: LocalTinker,
) -> None:
    async with lenient_server as local, a_desk(local) as desk:
        path = await saved(local)
        local.damage(path, "bit_flip")
        verdicts = await desk.verify(path, canary=CanaryBatch(batch(0)))
        assert [each.level for each in verdicts] == [*ALL[:3], "canary"]
        assert not verdicts[-1].ok
        assert "the logprobs differ by up to" in verdicts[-1].reason
        local.damage(path, "nan")
        assert not (await desk.verify(path, canary=CanaryBatch(PROBE)))[-1].ok
        local.damage(path, "deleted")
        refused = (await desk.verify(path, canary=CanaryBatch(PROBE)))[-1]
        assert (refused.level, refused.ok) == ("canary", False)
        assert REFUSED in refused.reason
        await desk.nothing_is_left()


async def test_an_export_that_was_damaged_once_is_no_word_against_the_checkpoint(
    local: LocalTinker,
) -> None:
    path = await saved(local, rank=8)
    damaging = 1
    exports: list[str] = []

    def progress(now: Progress) -> None:
        nonlocal damaging
        if now.phase == "downloading" and exports[-1:] != (there := list_exports()):
            exports.extend(there)
            if damaging:
                damaging -= 1
                local.damage(there[0], "hole")

    def list_exports() -> list[str]:
        reply = httpx.get(
            f"{local.base_url}/api/v1/checkpoints",
            headers={"X-API-Key": local.api_key},
            params={"limit": 50},
            verify=False,  # noqa: S501 - nothing here is encrypted
        )
        return [
            each["tinker_path"]
            for each in reply.json()["checkpoints"]
            if each["checkpoint_type"] == "external"
        ]

    async with a_desk(local) as desk:
        assert (await desk.bytes(path, progress)).ok
        assert len(exports) == 2, "it was looked into a second time"
        damaging = 2
        verdict = await desk.bytes(path, progress)
        assert not verdict.ok
        assert "a hole of 64 bytes" in verdict.reason
        assert len(exports) == 4
        await desk.nothing_is_left()


async def test_a_service_whose_exports_are_not_the_same_twice_is_not_called_wrong(
    local: LocalTinker,
) -> None:
    path = await saved(local, rank=8)
    async with a_desk(local) as desk:
        (run,) = local.runs()
        notebook = notebook_of(desk.verifier)
        assert run in path
        await desk.bytes(path)
        noted = (await notebook.notes()).files[path]
        sha256 = noted.split('"')[3]
        await notebook.forget([path])
        await notebook.note_files(path, noted.replace(sha256, "0" * 64))
        verdict = await desk.bytes(path)
        assert not verdict.ok
        assert f"SHA-256 {sha256}" in verdict.reason
        assert encode_files({}) == "{}"

        damaged = False

        def progress(now: Progress) -> None:
            nonlocal damaged
            if now.phase == "downloading" and not damaged:
                damaged = True
                local.damage(f"tinker://{local.runs()[0]}/external_weights/{only()}", "bit_flip")

        def only() -> str:
            (file,) = folder_of(local).rglob("external_weights/*.json")
            return file.stem

        verdict = await desk.bytes(path, progress)
        assert verdict.ok
        assert "exports are not the same twice" in verdict.reason


async def test_what_is_not_listed_or_of_another_size_is_not_looked_into_any_further(
    local: LocalTinker,
) -> None:
    path = await saved(local)
    async with a_desk(local) as desk:
        (gone,) = await desk.verify(path + "-not", deep=True)
        assert (gone.level, gone.ok, gone.reason) == (
            "listing",
            False,
            "the service does not list it",
        )
        await notebook_of(desk.verifier).note_sizes({path: 7})
        verdicts = await desk.verify(path, deep=True, lineage="theirs")
        assert [(each.level, each.ok) for each in verdicts] == [
            ("metadata", False),
            ("listing", False),
        ]
        assert "7 are on record" in verdicts[1].reason
        with pytest.raises(UsageError, match="not of the form"):
            await desk.verify("tinker://r/sampler_weights/x")
        assert len(local.sessions()) == 1


@pytest.mark.parametrize("phase", ["loading", "exporting", "downloading", "checking"])
async def test_nothing_is_left_by_a_look_that_is_cancelled(phase: str) -> None:
    async with LocalTinker(load_s=0.1, save_s=0.1) as local, a_desk(local) as desk:
        path = await saved(local, rank=8)
        local.inject(FaultRule("slow", request="download", delay_s=0.1, times=9))
        there = anyio.Event()

        def progress(now: Progress) -> None:
            if now.phase == phase:
                there.set()

        async with anyio.create_task_group() as group:
            group.start_soon(lambda: desk.verify(path, deep=True, progress=progress))
            await there.wait()
            if phase != "checking":
                await anyio.sleep(0.03)
            group.cancel_scope.cancel()
        assert group.cancel_scope.cancelled_caught
        await desk.nothing_is_left()


@pytest.mark.parametrize(
    "rule",
    [
        FaultRule("truncate", request="download"),
        FaultRule("status", request="download", status=403),
    ],
    ids=lambda rule: f"{rule.action}-{rule.status}",
)
async def test_a_download_that_fails_once_is_tried_again_and_one_that_fails_on_is_an_error(
    local: LocalTinker, rule: FaultRule, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "httpx")  # which the SDK has set to warnings
    path = await saved(local, rank=8)
    async with a_desk(local) as desk:
        local.inject(rule)
        assert (await desk.bytes(path)).ok
        for _ in range(3):
            local.inject(rule)
        with pytest.raises(StatusUnavailable, match="downloading 'adapter_config") as told:
            await desk.verify(path, deep=True)
        await desk.nothing_is_left()
    everything = caplog.text + "".join(traceback.format_exception(told.value))
    assert f"{local.base_url}/signed" not in everything
    assert "training_runs" in caplog.text, "httpx writes of other requests, and may"


async def test_an_outage_is_an_error_and_an_export_that_cannot_be_deleted_is_told_of(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    path = await saved(local, rank=8)
    limits = Limits(close_s=0.3)
    async with a_desk(local, limits=limits) as desk:

        def progress(now: Progress) -> None:
            if now.phase == "downloading":
                local.begin_outage(status=503)

        with pytest.raises(StatusError):
            await desk.verify(path, deep=True, progress=progress)
        assert "could not be deleted (HTTP 503)" in caplog.text
        local.end_outage()
        for session, state in local.sessions().items():
            if state == "active":  # its end could not be told either; the service times it out
                local.fail_session(session)
        with pytest.raises(StatusUnavailable):
            local.begin_outage()
            await desk.verify(path, deep=True)
        local.end_outage()


async def test_a_service_that_fails_to_load_for_reasons_of_its_own_is_an_error(
    local: LocalTinker,
) -> None:
    path = await saved(local, rank=8)
    async with a_desk(local) as desk:
        local.inject(FaultRule("fail", request="load_weights"))
        with pytest.raises(StatusUnavailable, match="could not be loaded"):
            await desk.verify(path, deep=True)
        local.inject(FaultRule("fail", request="load_weights", category="user"))
        assert (await desk.bytes(path)).ok, "one refusal may have other reasons"
        local.inject(FaultRule("fail", request="save_weights_external"))
        with pytest.raises(StatusUnavailable, match="could not be exported"):
            await desk.verify(path, deep=True)
    async with a_desk(local, limits=Limits(export_s=0.05, close_s=0.2)) as desk:
        local.inject(FaultRule("hang", request="save_weights_external"))
        with pytest.raises(StatusUnavailable, match="longer than its deadline"):
            await desk.verify(path, deep=True)
        await desk.nothing_is_left()


async def test_addresses_about_to_expire_are_signed_again(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await saved(local, rank=8)
    monkeypatch.setattr(StatusReader, "service_now", lambda _: time.time() + 56 * 60)
    async with a_desk(local) as desk:
        assert (await desk.bytes(path)).ok
    assert local.stats.by_route["external_weights_urls"] == 3, "once, and once for each file"


async def test_whoever_traces_http_requests_is_asked_to_pass_over_the_downloads(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await saved(local, rank=8)
    asked: dict[str, object] = {}
    send = httpx.AsyncHTTPTransport.handle_async_request
    send_blocking = httpx.HTTPTransport.handle_request

    def note(request: httpx.Request) -> None:
        asked[request.url.path] = context.get_value(context._SUPPRESS_HTTP_INSTRUMENTATION_KEY)

    async def look(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        note(request)
        return await send(self, request)

    def look_blocking(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        note(request)
        return send_blocking(self, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", look)
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", look_blocking)
    async with a_desk(local) as desk:
        assert (await desk.bytes(path)).ok
    signed = [suppressed for url, suppressed in asked.items() if url.startswith("/signed/")]
    assert signed == [True, True]
    assert asked["/api/v1/weights_info"] is None


@pytest.mark.parametrize("name", ["../x", "/x", ".", "", "a/../../x", "a/../.."])
def test_a_file_whose_name_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StatusRefused, match="is outside its folder"):
        place_of_file(tmp_path, name)


def test_a_file_may_lie_in_a_folder_of_the_export(tmp_path: Path) -> None:
    assert place_of_file(tmp_path, "a/b.safetensors") == tmp_path.resolve() / "a" / "b.safetensors"


async def test_a_reply_with_addresses_that_does_not_fit_is_refused_without_quoting_it() -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/client/config"):
            return httpx.Response(200, json={})
        return httpx.Response(200, json={"urls": {"a": "http://x/?token=geheim"}, "expires": "-"})

    endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))
    async with StatusReader(endpoint, transport=httpx.MockTransport(reply)) as reader:
        with pytest.raises(StatusRefused, match="not a map of signed URLs") as told:
            await CheckpointCalls(reader.http).signed_files("tinker://r/external_weights/e")
    error: BaseException | None = told.value
    while error is not None:
        assert "geheim" not in str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("limit", ["load_s", "silence_s", "close_s"])
def test_a_limit_that_is_no_time_is_refused(limit: str) -> None:
    with pytest.raises(UsageError, match=f"{limit}=0"):
        Limits(**{limit: 0.0})


async def test_a_service_that_refuses_to_say_what_the_run_is_leaves_no_verdict(
    local: LocalTinker,
) -> None:
    path = await saved(local)
    async with a_desk(local) as desk:
        local.inject(FaultRule("status", request="training_run", status=403))
        with pytest.raises(StatusRefused, match="403"):
            await desk.verify(path)
        await desk.nothing_is_left()
