"""Publishing while a run trains: real runs, a real server, a real hub, real processes."""

from __future__ import annotations

import dataclasses
import errno
import functools
import gc
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import pytest_asyncio
from loops import ADAM, MODEL, POLL_S, SEED, batch, policy, train
from loops import loop as run_loop

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    JournalError,
    RecoveryEvent,
    RecoveryPolicy,
    Supervisor,
    UsageError,
)
from tinker_recovery.errors import ExportUnavailable
from tinker_recovery.export import publisher
from tinker_recovery.export.hub import publish
from tinker_recovery.export.leaving import EXPORTS
from tinker_recovery.export.waiting import Waiting
from tinker_recovery.journal import Journal, Notebook, default_path
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.publication import Publication, kept_for_export
from tinker_recovery.run.publishing import PublishedView
from tinker_recovery.service.download import Download
from tinker_recovery.testing import FaultRule, LocalHub, LocalTinker

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries", "local")


@pytest_asyncio.fixture
async def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[LocalHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    async with LocalHub() as hub:
        for name, value in hub.environment.items():
            monkeypatch.setenv(name, value)
        yield hub


def publishing(publish: str = "end", **more: Any) -> RecoveryPolicy:
    return policy(
        poll_interval_s=POLL_S,
        checkpoints=CheckpointPolicy(
            **{
                "save_at_start": False,
                "save_every": 2,
                "push_to_hub": "me/sft",
                "publish": publish,
                "publish_timeout_s": 60.0,
                **more,
            }
        ),
    )


async def reporting(attempt: Attempt, *, losses: Sequence[float], hub: LocalHub | None) -> None:
    """Trains a step for each loss; with a hub, waits before its end for what was published."""
    for step in range(attempt.start_step, len(losses)):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        await forward
        await update
        attempt.report(loss=losses[step])
    if hub is not None:
        while not (at := hub.repositories.get("me/sft")) or not at.commits:  # noqa: ASYNC110 - its own thread
            await anyio.sleep(0.02)


async def run(
    given: RecoveryPolicy, events: list[RecoveryEvent], loop: Any, name: str = "sft", **more: Any
) -> Supervisor:
    async with Supervisor(given, on_event=events.append, **more) as supervisor:
        await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED, name=name)
    return supervisor


def titles(hub: LocalHub) -> list[str]:
    return [each.title for each in hub.repositories["me/sft"].commits]


def told(events: Sequence[RecoveryEvent], name: str) -> list[str]:
    return [each.message for each in events if each.name == name]


def noted() -> dict[str, str]:
    """What the journal says is being published."""
    with Journal(default_path(), service=os.environ["TINKER_BASE_URL"]) as journal:
        return dict(journal.notes().publications)


async def test_the_last_checkpoint_is_published_when_the_run_has_ended(hub: LocalHub) -> None:
    events: list[RecoveryEvent] = []
    await run(publishing(), events, functools.partial(train, steps=7))
    assert titles(hub) == ["step 7 of run sft"]
    card = hub.repositories["me/sft"].files["README.md"].decode()
    assert MODEL in card
    (exported,) = told(events, "checkpoint.exported")
    (published,) = told(events, "checkpoint.published")
    assert "to be published in me/sft" in exported
    assert "in me/sft, commit " in published
    assert told(events, "checkpoint.publish_failed") == []
    assert noted() == {}
    assert not list((default_path().parent / "exports").iterdir())


async def test_each_is_published_in_order(hub: LocalHub) -> None:
    events: list[RecoveryEvent] = []
    await run(publishing("each"), events, functools.partial(train, steps=6))
    assert titles(hub) == [f"step {step} of run sft" for step in (2, 4, 6)]


async def test_only_the_best_so_far_is_published(hub: LocalHub) -> None:
    events: list[RecoveryEvent] = []
    losses = [9.0, 8.0, 7.0, 7.5, 7.6, 7.7, 7.8, 7.9]
    loop = functools.partial(reporting, losses=losses, hub=None)
    await run(publishing("best"), events, loop)
    assert len(titles(hub)) in (1, 2)
    assert titles(hub)[-1] == "step 4 of run sft"


async def test_without_push_to_hub_nothing_is_published_and_no_child_is_there_for_it(
    local: LocalTinker, hub: LocalHub
) -> None:
    events: list[RecoveryEvent] = []
    await run(policy(), events, functools.partial(train, steps=3))
    assert hub.requests == []
    assert "save_weights_external" not in local.stats.by_route


async def test_a_recovery_comes_before_an_export(local: LocalTinker, hub: LocalHub) -> None:
    """The export hangs at the server; the run is poisoned, recovers, and ends bit-identical."""
    calm = await run(policy(), [], functools.partial(train, steps=12), name="calm")
    local.inject(FaultRule("hang", request="save_weights_external", times=1))
    local.inject(FaultRule("poison", at_step=8))
    events: list[RecoveryEvent] = []

    async def loop(attempt: Attempt) -> None:
        if attempt.start_step == 0:
            await train(attempt, steps=6)
            while not local.stats.by_route.get("save_weights_external"):  # noqa: ASYNC110 - its own thread
                await anyio.sleep(0.01)
            await _from(attempt, 6, 12)
        else:
            await train(attempt, steps=12)

    supervisor = await run(publishing("each", save_every=4), events, loop)
    (done,) = supervisor.runs
    assert len(done.recoveries) == 1
    want = local.run_state(calm.runs[0].segments[-1].run_id)
    have = local.run_state(done.segments[-1].run_id)
    assert (want.weights_digest, want.optimizer_digest) == (
        have.weights_digest,
        have.optimizer_digest,
    )
    assert told(events, "checkpoint.publish_failed") == []
    assert titles(hub) == [f"step {step} of run sft" for step in (4, 8, 12)]


async def _from(attempt: Attempt, start: int, steps: int) -> None:
    await run_loop(attempt.client, start, steps, 0)


@pytest.mark.parametrize("hurt", ["down", "refuses", "full"])
async def test_what_the_hub_does_is_said_once_tried_again_and_disturbs_no_training(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, hurt: str
) -> None:
    monkeypatch.setattr(publisher, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(publisher, "MOST_DELAY_S", 0.1)
    status = {"down": 503, "refuses": 401, "full": 413}[hurt]
    hub.fail(status, hurt, times=2, path="repos/create")
    events: list[RecoveryEvent] = []
    loop = functools.partial(reporting, losses=[1.0] * 4, hub=hub)
    supervisor = await run(publishing("each"), events, loop)
    assert supervisor.runs[0].recoveries == []
    failed = told(events, "checkpoint.publish_failed")
    assert len(failed) == 2
    word = {"down": "not available (HTTP 503)", "refuses": "HTTP 401", "full": "quota"}[hurt]
    assert word in failed[0]
    assert "is tried again in" in failed[0]
    assert titles(hub) == ["step 2 of run sft", "step 4 of run sft"]


@contextmanager
def a_small_disk(monkeypatch: pytest.MonkeyPatch, how: str) -> Iterator[Callable[[], None]]:
    """The disk of what is exported has no room, until what is yielded is called."""
    exports = default_path().parent / EXPORTS
    exports.mkdir(parents=True, exist_ok=True)
    if how == "injected":
        write = Download._write_all

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Download, "_write_all", full)
        yield lambda: monkeypatch.setattr(Download, "_write_all", write)
        return

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(exports)]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own

    try:
        mount("size=32k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount")
    try:
        yield lambda: mount("remount,size=16m")
    finally:
        subprocess.run(["umount", "-l", str(exports)], check=True)  # noqa: S603, S607 - our own


@pytest.mark.parametrize("how", ["injected", "mounted"])
async def test_a_full_disk_is_said_disturbs_no_training_and_is_gone_on_with_when_there_is_room(
    local: LocalTinker, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(publisher, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(publisher, "MOST_DELAY_S", 0.1)
    events: list[RecoveryEvent] = []
    with a_small_disk(monkeypatch, how) as make_room:

        async def loop(attempt: Attempt) -> None:
            await train(attempt, steps=4)
            while len(told(events, "checkpoint.publish_failed")) < 2:  # noqa: ASYNC110 - another task
                await anyio.sleep(0.02)
            assert noted() != {}
            assert hub.repositories == {}
            make_room()
            await _from(attempt, 4, 6)

        supervisor = await run(publishing("each"), events, loop)
        assert supervisor.runs[0].recoveries == []
        for each in told(events, "checkpoint.publish_failed"):
            assert "is not published yet, and is tried again in" in each
            assert "is full" in each
            assert "make room" in each
        assert titles(hub) == [f"step {step} of run sft" for step in (2, 4, 6)]
        assert noted() == {}
        # What was at the service for the first is gone on with: nothing is exported twice.
        assert local.stats.by_route["save_weights_external"] == 3


@pytest.mark.parametrize("request_", ["load_weights", "save_weights_external"])
async def test_an_export_that_a_backend_failed_under_is_tried_again(
    local: LocalTinker, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, request_: Any
) -> None:
    monkeypatch.setattr(publisher, "FIRST_DELAY_S", 0.05)
    local.inject(FaultRule("fail", request=request_))
    events: list[RecoveryEvent] = []
    loop = functools.partial(reporting, losses=[1.0] * 2, hub=hub)
    await run(publishing("each"), events, loop)
    (failed,) = told(events, "checkpoint.publish_failed")
    assert "is tried again in" in failed
    assert titles(hub) == ["step 2 of run sft"]


@pytest.mark.usefixtures("hub")
async def test_a_checkpoint_that_is_gone_is_given_up_with_a_word(local: LocalTinker) -> None:
    events: list[RecoveryEvent] = []

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=4)
        local.inject(FaultRule("fail", request="load_weights", category="user"))

    local.inject(FaultRule("status", request="weights_info", status=404, times=9))
    await run(publishing(), events, loop)
    (failed,) = told(events, "checkpoint.publish_failed")
    assert "not tried again: the service has no checkpoint" in failed
    assert noted() == {}


async def test_what_waits_is_kept_by_retention(local: LocalTinker, hub: LocalHub) -> None:
    hub.fail(503, "later", times=999, path="repos/create")
    events: list[RecoveryEvent] = []
    given = publishing("each", keep_last=1, save_best=False, publish_timeout_s=3.0)
    supervisor = await run(given, events, functools.partial(train, steps=10))
    stored = {each.steps for each in local.checkpoints(supervisor.runs[0].segments[-1].run_id)}
    waiting = {Publication.read(said).step for said in noted().values()}  # type: ignore[union-attr]  # it is one
    assert {2, 4, 6, 8, 10} <= stored
    assert waiting == {2, 4, 6, 8, 10}


async def test_a_format_whose_package_is_missing_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="format='pytorch' needs the package torch"):
        await run(publishing(format="pytorch"), [], functools.partial(train, steps=1))


@pytest.mark.usefixtures("hub")
async def test_whatever_publishing_meets_the_run_ends_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(publisher, "publish", broken)
    events: list[RecoveryEvent] = []
    supervisor = await run(publishing("each"), events, functools.partial(train, steps=4))
    assert supervisor.runs[0].recoveries == []
    assert "a bug of ours" in told(events, "checkpoint.publish_failed")[0]


async def test_one_that_a_better_one_replaces_while_it_fails_harms_nothing(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replaced, tried = anyio.Event(), 0

    async def first_fails(folder: Path, *more: Any) -> Any:
        nonlocal tried
        tried += 1
        if tried == 1:
            with anyio.fail_after(30):
                await replaced.wait()
            assert sorted([each.name async for each in anyio.Path(folder).iterdir()]) == [
                "adapter_config.json",
                "adapter_model.safetensors",
                "tinker_recovery.json",
            ], "what is being uploaded was taken away"
            raise ExportUnavailable("the hub is out of reach")
        return await publish(folder, *more)

    monkeypatch.setattr(publisher, "publish", first_fails)
    drop = Waiting.drop

    def told_drop(self: Waiting, path: str) -> None:
        drop(self, path)
        replaced.set()

    monkeypatch.setattr(Waiting, "drop", told_drop)
    events: list[RecoveryEvent] = []
    losses = [9.0, 9.0, 7.0, 7.0, 6.0, 6.0]
    loop = functools.partial(slowly, losses=losses, go_on=lambda: tried > 0)
    await run(publishing("best"), events, loop)
    assert "KeyError" not in caplog.text
    assert titles(hub)[-1] == "step 6 of run sft"
    assert not list((default_path().parent / "exports").iterdir())


async def slowly(attempt: Attempt, *, losses: Sequence[float], go_on: Callable[[], bool]) -> None:
    """Trains two steps, and the others once ``go_on`` says so."""
    await reporting(attempt, losses=losses[:2], hub=None)
    while not go_on():  # noqa: ASYNC110 - its own thread
        await anyio.sleep(0.02)
    for step in range(2, len(losses)):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        await forward
        await update
        attempt.report(loss=losses[step])


@pytest.mark.parametrize("slow_s", [0.0, 3.0])
async def test_what_waits_for_a_wrong_repository_goes_to_the_one_that_is_named_since(
    hub: LocalHub, slow_s: float
) -> None:
    hub.fail(403, "not yours", times=99, path="repos/create")
    given = publishing("each", push_to_hub="them/sft", publish_timeout_s=1.0)
    await run(given, [], functools.partial(train, steps=4))
    assert {Publication.read(each).repository for each in noted().values()} == {"them/sft"}  # type: ignore[union-attr]  # it is one
    hub.release()
    if slow_s:  # the first is still tried there when the run is over
        hub.fail(403, "not yours", path="repos/create", delay_s=slow_s)
    async with Supervisor(publishing("each")) as supervisor:
        loop = functools.partial(train, steps=6)
        more: Any = {"base_model": MODEL, "rank": 8, "seed": SEED, "name": "sft", "extend": True}
        await supervisor.run(loop, **more)
    # The first may be tried before the run is open, which is what knows the new name.
    assert not slow_s or list(hub.repositories) == ["me/sft"]
    assert titles(hub)[-2:] == ["step 4 of run sft", "step 6 of run sft"]
    assert noted() == {}


async def left_unpublished(hub: LocalHub, name: str = "sft") -> None:
    """A run whose checkpoints could not be published before its Supervisor was left."""
    hub.fail(503, "later", times=9999, path="repos/create")
    given = publishing("each", publish_timeout_s=1.0)
    await run(given, [], functools.partial(train, steps=4), name)


async def test_of_what_is_not_published_it_is_said_who_goes_on_with_it_if_anybody_does(
    hub: LocalHub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail(503, "later", times=9999, path="repos/create")
    given = publishing("each", publish_timeout_s=1.0)
    await run(given, [], functools.partial(train, steps=2), journal=None)
    assert "the next process on this journal" not in caplog.text
    said = r"`tinker-recovery export tinker://\S+/weights/\S+ --push me/sft`"
    assert re.search(rf"is not published, and the journal in memory is gone: {said}", caplog.text)


async def test_what_was_left_is_gone_on_with_by_the_next_supervisor_of_the_same_process(
    hub: LocalHub,
) -> None:
    await left_unpublished(hub)
    hub.release()
    async with Supervisor(publishing("each")):
        pass
    assert titles(hub)[-1] == "step 4 of run sft"
    assert noted() == {}


async def test_a_repository_goes_forward_also_where_it_was_not_noted_what_was_published(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal was busy just then, and a later checkpoint was published and noted since."""
    end, failed = Notebook.end_publication, list[str]()

    async def failing_first(self: Notebook, path: str, *args: Any, **kwargs: Any) -> bool:
        if not failed:
            failed.append(path)
            raise JournalError("database is locked")
        return await end(self, path, *args, **kwargs)

    monkeypatch.setattr(Notebook, "end_publication", failing_first)
    await run(publishing("each"), [], functools.partial(train, steps=4))
    assert titles(hub) == ["step 2 of run sft", "step 4 of run sft"]
    assert list(noted()) == failed
    with Journal(default_path(), service=os.environ["TINKER_BASE_URL"]) as journal:
        left = Publication.read(noted()[failed[0]])
        assert left is not None
        dead = dataclasses.replace(left, holder=left.holder.gone())
        journal.write_publication(left.path, dead.said())
    async with Supervisor(publishing("each")):
        pass
    assert titles(hub) == ["step 2 of run sft", "step 4 of run sft"]
    assert noted() == {}


async def test_what_was_left_is_let_go_of_once_its_run_is_trained_on_without_publishing(
    local: LocalTinker, hub: LocalHub
) -> None:
    await left_unpublished(hub, "another")
    await left_unpublished(hub)
    of_another = {path for path, said in noted().items() if '"another"' in said}
    assert len(noted()) > len(of_another) > 0
    hub.release()
    events: list[RecoveryEvent] = []
    keep = CheckpointPolicy(save_at_start=False, save_every=2, keep_last=1, save_best=False)
    async with Supervisor(policy(checkpoints=keep), on_event=events.append) as supervisor:
        more: Any = {"base_model": MODEL, "rank": 8, "seed": SEED, "name": "sft", "extend": True}
        await supervisor.run(functools.partial(train, steps=8), **more)
    assert set(noted()) == of_another, "another program may go on with it"
    failed = told(events, "checkpoint.publish_failed")
    assert len(failed) == 2
    assert "is not published, and not tried again: push_to_hub is off" in failed[0]
    (done,) = supervisor.runs
    kept = {each.steps for segment in done.segments for each in local.checkpoints(segment.run_id)}
    assert 2 not in kept
    assert len(list((default_path().parent / "exports").iterdir())) == 1
    assert hub.repositories == {}


async def test_what_is_being_exported_or_published_by_a_process_that_lives_is_not_let_go_of(
    hub: LocalHub,
) -> None:
    await left_unpublished(hub)
    service = os.environ["TINKER_BASE_URL"]
    with Journal(default_path(), service=service) as journal:
        for number, (path, said) in enumerate(noted().items()):
            left = Publication.read(said)
            assert left is not None
            # One is at it, and of the other it cannot be seen, as it is on another machine.
            here = Holder.here(now=0.0, lease_s=0.0)
            holder = here if number else dataclasses.replace(here, machine="another")
            journal.write_publication(path, dataclasses.replace(left, holder=holder).said())
    before = noted()
    async with Supervisor(policy()) as supervisor:
        more: Any = {"base_model": MODEL, "rank": 8, "seed": SEED, "name": "sft", "extend": True}
        await supervisor.run(functools.partial(train, steps=6), **more)
    assert noted() == before


async def test_runs_that_have_ended_are_let_go_of(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = weakref.WeakSet[PublishedView]()
    init = PublishedView.__init__

    def noting_init(self: PublishedView, of: Any) -> None:
        init(self, of)
        views.add(self)

    monkeypatch.setattr(PublishedView, "__init__", noting_init)
    async with Supervisor(publishing("end")) as supervisor:
        for name in ("a", "b"):
            loop = functools.partial(train, steps=2)
            await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED, name=name)
        with anyio.fail_after(20):
            while views:
                await anyio.sleep(POLL_S)
                gc.collect()
    assert titles(hub)


async def test_a_run_that_only_observes_publishes_nothing(hub: LocalHub) -> None:
    given = publishing("each").model_copy(update={"enabled": False})
    await run(given, [], functools.partial(train, steps=2))
    assert hub.requests == []


_A_PROCESS = """
import asyncio, functools, json, sys
sys.path[:0] = json.loads(sys.argv[1])
from loops import MODEL, SEED, policy, train
from tinker_recovery import CheckpointPolicy, Supervisor

async def main(name):
    checkpoints = CheckpointPolicy(
        save_at_start=False, save_every=2, push_to_hub="me/sft", publish_timeout_s=60.0
    )
    async with Supervisor(policy(checkpoints=checkpoints)) as supervisor:
        print("entered", flush=True)
        await supervisor.run(
            functools.partial(train, steps=4), base_model=MODEL, rank=8, seed=SEED, name=name
        )
        print("trained", flush=True)
    print("left", flush=True)

asyncio.run(main(sys.argv[2]))
"""


@pytest.mark.parametrize("at", ["download", "upload"])
async def test_what_a_killed_process_has_begun_the_next_one_goes_on_with(
    local: LocalTinker, hub: LocalHub, at: str
) -> None:
    if at == "download":
        local.inject(FaultRule("slow", request="download", delay_s=50.0, times=1))
    else:
        hub.fail(0, delay_s=50.0, path="repos/create")

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _A_PROCESS, json.dumps(sys.path), name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own

    def begun() -> bool:
        if at == "download":
            return bool(local.stats.by_route.get("download"))
        return any("repos/create" in each for each in hub.requests)

    process = await anyio.to_thread.run_sync(start, "sft")
    while not begun():  # noqa: ASYNC110 - another process's doing
        await anyio.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    await anyio.to_thread.run_sync(process.communicate)
    (said,) = noted().values()
    left = Publication.read(said)
    assert left is not None
    assert (left.step, left.repository, left.holder.lives()) == (4, "me/sft", False)
    made = local.stats.by_route["save_weights_external"]
    hub.release()
    other = await anyio.to_thread.run_sync(start, "another")
    said, _ = await anyio.to_thread.run_sync(other.communicate)
    assert said.splitlines()[-1] == "left"
    assert "step 4 of run sft" in titles(hub)
    # The other run's own is refused there: the repository is the first one's.
    assert local.stats.by_route["save_weights_external"] == made + 1
    assert {Publication.read(each).run for each in noted().values()} == {"another"}  # type: ignore[union-attr]  # it is one
    for session, state in local.sessions().items():
        if state == "active":
            local.fail_session(session)


def test_an_export_of_a_dead_process_keeps_nothing_and_a_publication_does(tmp_path: Path) -> None:
    here = Holder.here(now=0.0, lease_s=0.0)
    dead = Holder(here.host, here.machine, here.pid, "1", 0.0, 0.0)

    def said(path: str, repository: str | None, holder: Holder) -> dict[str, str]:
        made = Publication(
            path=path, run="r", lineage="l", step=1, repository=repository, holder=holder
        )
        assert Publication.read(made.said()) == made
        return {path: made.said()}

    noted_ = {
        **said("a", None, here),
        **said("b", None, dead),
        **said("c", "me/x", dead),
        "d": "of another version",
    }
    assert kept_for_export(noted_) == {
        "a": "it is being exported",
        "c": "it is to be published in me/x",
        "d": "it is being exported",
    }
    with Journal(tmp_path / "journal.sqlite3", service="http://x") as journal:
        for path, note in noted_.items():
            journal.write_publication(path, note)
        journal.pin("e")
        pinned = [path for path in "abcdef" if journal.is_pinned(path)]
    assert pinned == ["a", "c", "d", "e"], "asked again right before a deletion"
