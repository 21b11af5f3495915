"""SupervisedClient: TrainingClient's methods, with every step counted."""

from __future__ import annotations

import functools
import threading
from typing import Any

import anyio.to_thread
import pytest
import tinker
from inspection import run_id_of, set_notice_s, set_open_again_s
from loops import ADAM, MODEL, batch, policy, train, until

from tinker_recovery import CheckpointPolicy, RecoveryEvent, StaleAttempt, Supervisor, UsageError
from tinker_recovery.testing import FaultRule, LocalTinker


async def test_every_public_name_of_the_sdks_client_is_there(
    local: LocalTinker,  # noqa: ARG001 - its environment
) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                names = [name for name in dir(tinker.TrainingClient) if not name.startswith("_")]
                missing = [
                    name
                    for name in names
                    if not name.startswith("load_state") and not hasattr(attempt.client, name)
                ]
                assert missing == []
                assert attempt.client.model_id == run_id_of(attempt)
                assert attempt.client.get_info().lora_rank == 32


async def test_the_step_stored_with_a_checkpoint_is_the_number_of_steps_inside_it(
    local: LocalTinker,
) -> None:
    """Everything is submitted at once, so nothing has been executed when the saves are queued.

    One save is in flight at most: that of step 3 is until all is submitted, and then comes the end.
    """
    saved: list[tuple[str, int]] = []

    def note(event: RecoveryEvent) -> None:
        if event.name == "checkpoint.saved":
            path = event.fields["tinker_recovery.checkpoint.path"]
            step = event.fields["tinker_recovery.checkpoint.step"]
            assert isinstance(path, str)
            assert isinstance(step, int)
            saved.append((path, step))

    every = policy(checkpoints=CheckpointPolicy(save_at_start=False, save_every=3))
    async with Supervisor(every, on_event=note) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                for step in range(10):
                    attempt.client.forward_backward(batch(step), "cross_entropy")
                    attempt.client.optim_step(ADAM)
                assert attempt.client.step == 10
    assert [step for _, step in saved] == [3, 10]
    service = local.service()
    for path, step in saved:
        pending = await anyio.to_thread.run_sync(service.create_training_client_from_state, path)
        assert local.run_state(str((await pending).model_id)).steps == step
    await service.close("success")


async def test_a_save_of_the_users_own_keeps_their_metadata_and_can_be_recovered_from(
    local: LocalTinker,
) -> None:
    local.poison(at_step=4)
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                if attempt.number == 1:
                    await train(attempt, steps=3)
                    await attempt.client.save_state("mine", user_metadata={"note": "kept"})
                    await train(attempt, steps=0)
                for step in range(max(3, attempt.start_step), 6):
                    await attempt.client.forward_backward(batch(step), "cross_entropy")
                    await attempt.client.optim_step(ADAM)
    run = supervisor.runs[0]
    assert run.attempts[1].start_step == 3
    rest = tinker.RestClient(base_url=local.base_url, api_key=local.api_key)
    mine = (await rest.list_checkpoints(run.segments[0].run_id)).checkpoints[0]
    assert mine.user_metadata is not None
    assert mine.user_metadata["note"] == "kept"
    assert mine.user_metadata["tinker_recovery.saved_by"] == "user"
    assert mine.user_metadata["tinker_recovery.step"] == "3"


async def test_loading_in_place_is_refused_because_the_count_would_be_wrong(
    local: LocalTinker,  # noqa: ARG001 - its environment
) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                for name in ("load_state", "load_state_with_optimizer", "load_state_async"):
                    with pytest.raises(UsageError, match="from_checkpoint="):
                        getattr(attempt.client, name)


async def test_whether_a_client_has_what_it_refuses_can_be_asked_like_of_any_object(
    local: LocalTinker,  # noqa: ARG001 - its environment
) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                assert not hasattr(attempt.client, "load_state")
                assert not hasattr(attempt.client, "load_state_with_optimizer_async")
                assert not hasattr(attempt.service, "close")
                assert hasattr(attempt.client, "save_state")


async def test_the_sdks_deprecated_spellings_warn_and_are_counted(
    local: LocalTinker,  # noqa: ARG001 - its environment
) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                with pytest.warns(FutureWarning, match=r"use forward_backward\(\)"):
                    forward = await attempt.client.forward_backward_async(batch(0), "cross_entropy")
                with pytest.warns(FutureWarning, match=r"use optim_step\(\)"):
                    update = await attempt.client.optim_step_async(ADAM)
                await forward
                await update
                assert attempt.client.step == 1


async def test_a_step_that_the_sdk_refuses_is_not_counted(
    local: LocalTinker,  # noqa: ARG001 - its environment
) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                with pytest.raises(TypeError):
                    attempt.client.optim_step(None)
                assert attempt.client.step == 0


async def test_steps_submitted_from_many_threads_are_all_counted_and_saved_where_due(
    local: LocalTinker,
) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                client = attempt.client

                def submit() -> None:
                    for _ in range(10):
                        client.optim_step(ADAM)  # noqa: B023 - joined within the same round

                threads = [threading.Thread(target=submit) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    await anyio.to_thread.run_sync(thread.join)
                assert client.step == 40
        run_id = supervisor.runs[0].segments[0].run_id
    assert local.run_state(run_id).steps == 40
    rest = tinker.RestClient(base_url=local.base_url, api_key=local.api_key)
    service = local.service()
    listed = (await rest.list_checkpoints(run_id)).checkpoints
    # One save is in flight at most, so which multiples of five are saved is a matter of time; the
    # first is, and so is the end.
    saved = sorted(int((one.user_metadata or {})["tinker_recovery.step"]) for one in listed)
    assert len(saved) >= 2
    assert (saved[0], saved[-1]) == (5, 40)
    assert len(set(saved)) == len(saved)
    assert all(step % 5 == 0 for step in saved)
    for one in listed:
        pending = await anyio.to_thread.run_sync(
            service.create_training_client_from_state, one.tinker_path
        )
        assert one.user_metadata is not None
        inside = local.run_state(str((await pending).model_id)).steps
        assert str(inside) == one.user_metadata["tinker_recovery.step"]
    await service.close("success")


@pytest.mark.parametrize("call", ["forward_backward", "save_state"])
async def test_what_another_thread_submits_meanwhile_is_behind_it_at_the_service_as_in_the_count(
    local: LocalTinker,  # noqa: ARG001 - its environment
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """Else a pass that is counted before an update would be executed behind it."""
    within = threading.Event()
    submitted: list[str] = []
    original = getattr(tinker.TrainingClient, call)

    def slow(*args: Any, **more: Any) -> Any:
        within.set()
        other.join(0.3)  # as long as it would take if nothing kept it from overtaking
        submitted.append(call)
        return original(*args, **more)

    def update() -> None:
        within.wait()
        client.optim_step(ADAM)
        submitted.append("optim_step")

    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                client, other = attempt.client, threading.Thread(target=update)
                await train(attempt, steps=1)
                monkeypatch.setattr(tinker.TrainingClient, call, slow)
                other.start()
                given = ("mine",) if call == "save_state" else (batch(1), "cross_entropy")
                await anyio.to_thread.run_sync(getattr(client, call), *given)
                await anyio.to_thread.run_sync(other.join)
                monkeypatch.undo()
    assert submitted == [call, "optim_step"]


async def test_the_client_of_an_attempt_that_is_over_refuses_every_call(
    local: LocalTinker,
) -> None:
    local.poison(at_step=2)
    clients = []
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                clients.append(attempt.client)
                await train(attempt, steps=4)
    for client in clients:
        assert "retired" in repr(client)
        with pytest.raises(StaleAttempt, match=r"attempt\.client"):
            client.optim_step(ADAM)
        with pytest.raises(StaleAttempt, match=r"attempt\.client"):
            client.forward_backward(batch(0), "cross_entropy")
        with pytest.raises(StaleAttempt, match=r"attempt\.client"):
            client.save_state("late")
        with pytest.raises(StaleAttempt, match=r"attempt\.client"):
            client.save_weights_for_sampler("late")


async def test_a_slow_creation_is_logged_while_it_is_waited_for(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_notice_s(monkeypatch, 0.1)
    local.inject(FaultRule("pause", request="create_model", for_s=0.5))
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=1), base_model=MODEL)
    assert "the service is at work on it, and answered last: paused_capacity" in caplog.text


async def test_a_session_that_does_not_open_in_time_is_opened_again(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_open_again_s(monkeypatch, 0.2)
    local.inject(FaultRule("slow", request="create_session", delay_s=1.0))
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=1), base_model=MODEL)
        assert len(local.runs()) == 1, "nothing was created in the late session"
    assert "opening another" in caplog.text
    await until(lambda: sorted(local.sessions().values()) == ["interrupted", "success"])


async def test_a_session_opened_ahead_that_hangs_delays_a_recovery_by_little(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.poison(at_step=2)
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL):
            async with attempt:
                if attempt.number == 0:
                    # The very first request of the next ServiceClient gets no answer for longer
                    # than this test may take.
                    set_open_again_s(monkeypatch, 0.2)
                    local.inject(FaultRule("slow", request="config", delay_s=2.0))
                await train(attempt, steps=4)
    (run,) = supervisor.runs
    assert run.recoveries[0].service_s < 1.5
