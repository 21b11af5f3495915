"""Keys and tokens that are rotated, revoked and given back under a run, by the real SDK."""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import tinker
from custom_losses import Loss, Tensor, do_without_pytorch, squared
from loops import ADAM, MODEL, SEED, batch, loop, quick, undisturbed_state, until

from tinker_recovery import (
    Attempt,
    Clock,
    RecoveryEvent,
    RecoveryExhausted,
    RecoveryPolicy,
    Run,
    ServiceUnusable,
    Supervisor,
)
from tinker_recovery.faults import Kind
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12
NEW = "tml-the-new-key-of-the-service"
GONE = "tml-not-issued-yet-by-the-service"


class WaitingClock:
    """Every backoff ends at once, and moves the clock by as much; ``slept`` is their sum."""

    def __init__(self, wake: Callable[[float], None] = lambda _: None) -> None:
        self.slept = 0.0
        self._wake = wake

    async def _sleep(self, seconds: float) -> None:
        task = asyncio.current_task()
        if task is None or "executor" not in task.get_name():
            return await anyio.sleep(seconds)
        self.slept += seconds
        self._wake(self.slept)
        return await anyio.lowlevel.checkpoint()

    @property
    def clock(self) -> Clock:
        """To be given to a Supervisor."""
        return Clock(
            sleep=self._sleep,
            random=lambda: 0.0,
            monotonic=lambda: time.monotonic() + self.slept,
        )


async def _trained(
    change: Callable[[], None],
    *,
    service: Callable[[], tinker.ServiceClient] = tinker.ServiceClient,
    events: list[RecoveryEvent] | None = None,
    clock: Clock | None = None,
    policy: RecoveryPolicy | None = None,
) -> Run:
    """A run of twelve steps, with ``change`` after the seventh of its first attempt."""

    async def train(attempt: Attempt) -> None:
        def done(step: int) -> None:
            if attempt.number == 1 and step == 6:
                change()

        await loop(attempt.client, attempt.start_step, STEPS, 0, done)

    async with Supervisor(
        policy or quick(),
        service=service,
        on_event=None if events is None else events.append,
        clock=clock or WaitingClock().clock,
    ) as supervisor:
        await supervisor.run(train, base_model=MODEL, rank=8, seed=SEED)
        (run,) = supervisor.runs
    return run


@pytest.mark.parametrize("jwt", [False, True])
async def test_a_key_rotated_under_a_run_costs_it_nothing_where_the_factory_has_the_new_one(
    *, jwt: bool
) -> None:
    async with LocalTinker(long_poll_s=0.05, jwt=jwt) as server:
        expected = await undisturbed_state(server, steps=STEPS)
        waiting = WaitingClock()
        run = await _trained(
            lambda: server.change_key(NEW), service=server.service, clock=waiting.clock
        )
        assert server.run_state(run.segments[-1].run_id) == expected
    assert [each.fault.kind for each in run.recoveries] == [Kind.UNAUTHORIZED]
    assert waiting.slept == 0, "the factory is asked at once"


@pytest.mark.parametrize("jwt", [False, True])
async def test_a_key_that_is_refused_for_a_while_is_waited_for(
    serving: Callable[..., object], *, jwt: bool
) -> None:
    async with serving(long_poll_s=0.05, jwt=jwt) as server:  # type: ignore[attr-defined]  # a fixture's context manager
        key = server.api_key
        expected = await undisturbed_state(server, steps=STEPS)

        def given_back(slept: float) -> None:
            if slept > 30:
                server.change_key(key)

        events: list[RecoveryEvent] = []
        waiting = WaitingClock(given_back)
        policy = quick(backoff_s=5.0, max_backoff_s=60.0, max_attempts=1)
        run = await _trained(
            lambda: server.change_key(GONE), clock=waiting.clock, events=events, policy=policy
        )
        assert server.run_state(run.segments[-1].run_id) == expected
    assert [each.fault.kind for each in run.recoveries] == [Kind.UNAUTHORIZED]
    assert waiting.slept == 35, "5, 10 and 20 s"
    said = [each.message for each in events if each.name == "recovery.waiting"]
    assert len(said) == 1
    assert "credential_grace_s" in said[0]


@pytest.mark.parametrize("grace_s", [0.0, 50.0])
async def test_a_key_that_stays_refused_ends_the_run_with_the_error_of_the_call(
    serving: Callable[..., object], grace_s: float
) -> None:
    asked: list[float] = []
    waiting = WaitingClock()

    def service() -> tinker.ServiceClient:
        asked.append(waiting.slept)
        return tinker.ServiceClient()

    async with serving(long_poll_s=0.05) as server:  # type: ignore[attr-defined]  # a fixture's context manager
        given_up: list[BaseException] = []
        policy = quick(
            backoff_s=5.0,
            max_backoff_s=60.0,
            credential_grace_s=grace_s,
            on_failure=lambda _, error: given_up.append(error),
        )
        before: list[int] = []

        def revoke() -> None:
            before.append(len(asked))
            server.change_key(GONE)

        with pytest.raises(tinker.AuthenticationError) as caught:
            await _trained(revoke, service=service, clock=waiting.clock, policy=policy)
        assert len(server.runs()) == 1
    assert given_up == [caught.value]
    assert len(asked) > before[0], "the factory was asked again before the run was given up"
    # The rest of it is the real time that the tries took.
    assert waiting.slept == pytest.approx(grace_s, abs=15 if grace_s else 0)


async def test_a_key_that_was_never_accepted_is_refused_at_once(
    serving: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = WaitingClock()
    async with serving() as server:  # type: ignore[attr-defined]  # a fixture's context manager
        monkeypatch.setenv("TINKER_API_KEY", GONE)
        with pytest.raises(ServiceUnusable, match="TINKER_API_KEY"):
            await _trained(lambda: None, clock=waiting.clock)
        assert server.runs() == []
    assert waiting.slept == 0


async def test_a_service_that_takes_the_key_and_refuses_to_train_is_not_tried_for_ever(
    local: LocalTinker,
) -> None:
    """A gate in front of one route, say: new sessions open, and each call is refused anew."""

    def gate() -> None:
        local.inject(FaultRule("status", request="optim_step", status=401, for_s=60.0))

    with pytest.raises(RecoveryExhausted, match="unauthorized"):
        await _trained(gate)
    assert len(local.runs()) == 4, "the first, and one for each of three attempts"


async def test_a_command_is_a_credential_of_its_own_and_a_run_is_recovered_by_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The organization's way to short-lived credentials: no key anywhere, and a JWT service."""
    caplog.set_level(logging.DEBUG)
    async with LocalTinker(
        long_poll_s=0.05, jwt=True, api_key="tml-printed-by-a-command"
    ) as server:
        expected = await undisturbed_state(server, steps=STEPS)
        printed = tmp_path / "credential"
        printed.write_text(server.api_key)
        monkeypatch.delenv("TINKER_API_KEY", raising=False)
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_CREDENTIAL_CMD", f"cat {shlex.quote(str(printed))}")

        def rotate() -> None:
            server.change_key(NEW)
            printed.write_text(NEW)
            server.inject(FaultRule("poison", 8))

        events: list[RecoveryEvent] = []
        run = await _trained(rotate, events=events)
        assert server.run_state(run.segments[-1].run_id) == expected
        shown = caplog.text + "".join(map(repr, events))
    assert [each.fault.kind for each in run.recoveries] == [Kind.REQUEST_FAILED]
    for secret in ("tml-printed-by-a-command", NEW):
        assert secret not in shown


# -- where else a key may be refused ------------------------------------------------------------


async def test_a_key_rotated_under_a_loss_of_the_users_own_is_recovered_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The SDK computes it in a thread of its own, between two requests."""
    do_without_pytorch(monkeypatch)
    async with LocalTinker(long_poll_s=0.05) as server:

        async def trained(*, rotates: bool) -> Run:
            rotated: list[bool] = []

            def loss(data: object, logprobs: list[Tensor]) -> tuple[Loss, dict[str, float]]:
                if rotates and not rotated and updates[0] == 6:
                    rotated.append(True)
                    server.change_key(NEW)
                return squared(data, logprobs)

            updates = [0]

            async def train(attempt: Attempt) -> None:
                for step in range(attempt.start_step, STEPS):
                    updates[0] = step
                    await attempt.client.forward_backward_custom(batch(step), loss)
                    await attempt.client.optim_step(ADAM)

            async with Supervisor(
                quick(), service=server.service, clock=WaitingClock().clock
            ) as supervisor:
                await supervisor.run(train, base_model=MODEL, rank=8, seed=SEED)
                (run,) = supervisor.runs
            return run

        undisturbed, run = await trained(rotates=False), await trained(rotates=True)
        ends = [server.run_state(each.segments[-1].run_id) for each in (undisturbed, run)]
    assert ends[0] == ends[1]
    assert [each.fault.kind for each in run.recoveries] == [Kind.UNAUTHORIZED]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_key_revoked_while_the_run_is_being_recovered_is_waited_for(
    serving: Callable[..., object], *, waits: bool
) -> None:
    """The fault was another one; the factory has the new key at once, or later."""
    async with serving(long_poll_s=0.05) as server:  # type: ignore[attr-defined]  # a fixture's context manager
        key = server.api_key
        expected = await undisturbed_state(server, steps=STEPS)
        waiting = WaitingClock(lambda slept: server.change_key(key) if slept > 30 else None)
        asked: list[str] = []

        def revoke() -> None:
            server.inject(FaultRule("poison", 8))
            # Once a recovery has opened its session, and before it has loaded anything.
            server.inject(FaultRule("status", request="load_weights", status=401))

        def revoked_then(event: RecoveryEvent) -> None:
            asked.append(event.name)
            if event.name == "recovery.started" and asked.count(event.name) == 1:
                server.change_key(GONE if waits else NEW)

        async def train(attempt: Attempt) -> None:
            def done(step: int) -> None:
                if attempt.number == 1 and step == 6:
                    revoke()

            await loop(attempt.client, attempt.start_step, STEPS, 0, done)

        async with Supervisor(
            quick(backoff_s=5.0, max_backoff_s=60.0, max_attempts=3),
            service=tinker.ServiceClient if waits else server.service,
            on_event=revoked_then,
            clock=waiting.clock,
        ) as supervisor:
            await supervisor.run(train, base_model=MODEL, rank=8, seed=SEED)
            (run,) = supervisor.runs
        assert server.run_state(run.segments[-1].run_id) == expected
    assert [each.fault.kind for each in run.recoveries] == [Kind.REQUEST_FAILED]
    assert not waits or waiting.slept >= 35


@pytest.mark.parametrize("factory", [False, True])
async def test_a_key_rotated_under_a_run_that_is_only_watched_does_not_end_its_watch(
    serving: Callable[..., object], caplog: pytest.LogCaptureFixture, *, factory: bool
) -> None:
    """The factory has the new key; or the old one is given back in the end."""
    async with serving(long_poll_s=0.05) as server:  # type: ignore[attr-defined]  # a fixture's context manager
        key = server.api_key
        (run_id,) = server.add_runs(1, saved=True)
        got: list[str] = []
        async with Supervisor(
            quick(poll_interval_s=0.02),
            service=server.service if factory else tinker.ServiceClient,
            clock=WaitingClock().clock,
        ) as supervisor:
            watch = supervisor.watch(run_id, on_recovery=lambda old, *_: got.append(old))
            await until(lambda: polled_of(server) > 1)
            server.change_key(NEW)
            if not factory:
                await until(lambda: "401" in caplog.text)
                assert "TINKER_API_KEY" in caplog.text
                server.change_key(key)
            server.corrupt([run_id])
            await until(lambda: watch.recoveries == 1)
            assert got == [run_id]
        server.fail_session(run_id.partition(":")[0])


def polled_of(server: LocalTinker) -> int:
    """How often a status was read."""
    return server.stats.by_route.get("training_run", 0)
