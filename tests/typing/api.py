"""The public API as users write it. Checked by mypy and never run.

Each public name is used once, and what it gives is asserted where that says something. A change of
a signature or a type that breaks users breaks here first. tests/test_public_names.py sees to it
that no name is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, assert_type

import tinker
from hypothesis import given
from tinker import types

from tinker_recovery import (
    AmbiguousRun,
    Attempt,
    CheckpointError,
    CheckpointPolicy,
    CheckpointRecord,
    Clock,
    ContradictoryCheckpoints,
    CorruptedRun,
    DeadlineExceeded,
    EventsDropped,
    EventStream,
    Fault,
    FaultError,
    GroupAttempt,
    InvalidMetadata,
    JournalError,
    Kind,
    LeaseLost,
    NonFiniteLoss,
    Notify,
    NoUsableCheckpoint,
    OtherWeights,
    Recovered,
    Recovery,
    RecoveryEvent,
    RecoveryExhausted,
    RecoveryLost,
    RecoveryPolicy,
    RecoveryRefused,
    Run,
    RunFailed,
    RunFinished,
    RunHeld,
    ServiceFactory,
    ServiceUnusable,
    StaleAttempt,
    StartOptions,
    StatusError,
    StatusRefused,
    StatusUnavailable,
    SupervisedClient,
    Supervisor,
    TinkerRecoveryError,
    UsageError,
    Verdict,
    Watch,
    WhenSaved,
    __version__,
    policy_from_settings,
    recover_from_checkpoint,
    supervision,
)
from tinker_recovery.checkpoints import (
    AnyOf,
    Candidate,
    Decision,
    EveryEpochs,
    EverySteps,
    KeepAny,
    KeepEvery,
    KeepLast,
    Moment,
)
from tinker_recovery.supervision import (
    AbandonedChild,
    AutoShutdown,
    Backoff,
    BaseSupervisor,
    Child,
    ChildAlreadyPresent,
    ChildAlreadyStarted,
    ChildCounts,
    ChildError,
    ChildExited,
    ChildInfo,
    ChildNotFound,
    ChildNotReady,
    ChildReady,
    ChildRestarted,
    ChildRestarting,
    ChildRunning,
    ChildSpec,
    ChildStarted,
    ChildState,
    ChildTerminated,
    ChildType,
    Context,
    CrashReport,
    DynamicSupervisor,
    Escalated,
    HeartbeatMissed,
    Outcome,
    Restart,
    RestartLimitReached,
    RestartScheduled,
    Shutdown,
    SpecError,
    StartTimedOut,
    StopTimedOut,
    Strategy,
    SupervisionError,
    SupervisionEvent,
    SupervisionTree,
    SupervisorStopped,
    TooManyChildren,
    UnexpectedExit,
)
from tinker_recovery.telemetry import (
    Event,
    Export,
    configure_metrics,
    configure_tracing,
    from_json_line,
    hide,
    json_line,
    redact,
)
from tinker_recovery.testing import (
    DIALECTS,
    Damage,
    Dialect,
    FaultRule,
    FiredFault,
    HubCommit,
    HubRepository,
    LocalHub,
    LocalTinker,
    LocalTinkerProcess,
    LocalTokenizer,
    Network,
    Options,
    RequestStats,
    RunState,
    StoredCheckpoint,
    serve,
    write_tiny_model,
)
from tinker_recovery.testing.strategies import fault_rules, schedules

# Policies


def recovered(old: object, new: SupervisedClient, checkpoint: CheckpointRecord | None) -> None:
    assert_type(new.step, int)
    del old, checkpoint


async def given_up(run_id: str, error: BaseException) -> None:
    del run_id, error


def is_mine(error: BaseException) -> bool:
    return "mine" in str(error)


def keeps(record: CheckpointRecord) -> bool:
    assert_type(record.metrics, Mapping[str, float])
    return record.step % 1000 == 0


class Mornings:
    def decide(self, moment: Moment) -> Decision:
        return Decision(due=moment.step % 7 == 0, reason="a morning")


class Sevens:
    def keep(self, newest_first: Sequence[Candidate]) -> Mapping[str, str]:
        return {each.record.path: "mine" for each in newest_first if each.record.step % 7 == 0}


class Tracker:
    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        del metrics, step


own = CheckpointPolicy(
    schedule=AnyOf(EverySteps(20), EveryEpochs(1), Mornings()),
    retention=KeepAny(KeepLast(3), KeepEvery(1000), Sevens()),
)
saving = CheckpointPolicy(
    strategy="steps", save_every=20, save_at_steps=(1, 2), keep_if=keeps, best_mode="max"
)
publishing = CheckpointPolicy(
    format="gguf", push_to_hub="me/sft", publish="best", publish_timeout_s=60.0
)
policy = RecoveryPolicy(
    enabled=True,
    retryable_errors=(OSError, is_mine),
    on_recovery=recovered,
    on_failure=given_up,
    on_repeated_fault="skip_step",
    checkpoint_strategy="step:40",
    checkpoints=saving,
)
assert_type(policy.checkpoints, CheckpointPolicy)
assert_type(policy.stall_after_s, float | Literal["off"] | None)
assert_type(policy_from_settings(config=Path("x.toml"), max_attempts=5), RecoveryPolicy)


# Supervised runs


async def train(attempt: Attempt) -> float:
    assert_type(attempt.client, SupervisedClient)
    assert_type(attempt.checkpoint, CheckpointRecord | None)
    assert_type((attempt.number, attempt.start_step), tuple[int, int])
    loss = 0.0
    for step in range(attempt.start_step, 100):
        if attempt.skip(step):
            continue
        forward = attempt.client.forward_backward([], "cross_entropy")
        update = attempt.client.optim_step(types.AdamParams(learning_rate=1e-4))
        # What `await` gives is Any in the SDK's own types.
        assert_type(forward, tinker.APIFuture[types.ForwardBackwardOutput])
        assert_type(update, tinker.APIFuture[types.OptimStepResponse])
        loss = (await forward).metrics["loss:sum"]
        await update
        attempt.report(loss=loss)
        attempt.loop_state = {"position": step}
    attempt.end_epoch()
    assert_type(attempt.epoch, int)
    saved = attempt.client.save_state("last")
    assert_type(saved, tinker.APIFuture[types.SaveWeightsResponse])
    return loss


def blocking(attempt: Attempt) -> str:
    update = attempt.client.optim_step(types.AdamParams(learning_rate=1e-4))
    assert_type(update.result(), types.OptimStepResponse)
    return str(attempt.client.model_id)


def my_service() -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url="http://127.0.0.1:1")


factory: ServiceFactory = my_service


def my_start(service: tinker.ServiceClient) -> object:
    return service.create_lora_training_client("Qwen/Qwen3-8B")


async def supervised(adopted: tinker.TrainingClient) -> None:
    def listen(event: RecoveryEvent) -> None:
        assert_type((event.name, event.run, event.message), tuple[str, str, str])

    clock = Clock(sleep=asyncio.sleep, random=lambda: 0.0)
    async with Supervisor(
        policy,
        service=my_service,
        on_event=listen,
        journal="runs.sqlite3",
        lease="service",
        quiet=True,
        clock=clock,
    ) as supervisor:
        assert_type(supervisor, Supervisor)
        async for attempt in supervisor.attempts(base_model="Qwen/Qwen3-8B", rank=32, seed=7):
            assert_type(attempt, Attempt)
            async with attempt as entered:
                assert_type(entered, Attempt)
        assert_type(await supervisor.run(train, from_checkpoint="tinker://r/weights/n"), float)
        assert_type(await supervisor.run(blocking, adopt=adopted, name="sft", start_step=3), str)
        options: StartOptions = {"start": my_start, "name": "sft", "extend": True}
        options |= {"on_lease": "refuse", "lineage": "new"}
        supervisor.attempts(**options)
        async for attempts in supervisor.group([{"base_model": "b"}, options]):
            assert_type(attempts, GroupAttempt)
            async with attempts as both:
                student, _ = both
                assert_type(student, Attempt)
                assert_type((both["teacher"], both[0]), tuple[Attempt, Attempt])
                assert_type((both.start_step, len(both)), tuple[int, int])
        supervisor.attempts(modell="Qwen/Qwen3-8B")  # type: ignore[call-arg]  # has to be refused
        for run in supervisor.runs:
            looked_at(run)


def held_otherwise() -> None:
    Supervisor(policy, lease="journal")
    tracked = Supervisor(
        notify=Notify("json://host/hook", on={"given_up", "recovered"}, every_s=300),
        heartbeat_url="https://host/uuid",
        trackers=[Tracker(), WhenSaved(Tracker())],
    )
    assert_type(tracked, Supervisor)
    Supervisor(notify=["json://host/hook"])
    Notify(on={"sometimes"})  # type: ignore[arg-type]  # has to be refused
    Supervisor(policy, lease="file")  # type: ignore[arg-type]  # has to be refused


def looked_at(run: Run) -> None:
    assert_type((run.name, run.state, run.lineage, run.step), tuple[str, str, str, int])
    assert_type(run.attempts, Sequence[Attempt])
    assert_type(run.metrics, Mapping[str, float])
    assert_type(run.error, BaseException | None)
    for recovery in assert_type(run.recoveries, Sequence[Recovery]):
        fault = assert_type(recovery.fault, Fault)
        assert_type((fault.kind, fault.verdict), tuple[Kind, Verdict])
        assert_type((fault.run, fault.attempt, fault.run_id), tuple[str, int, str])
        assert_type((fault.orderly, recovery.continued), tuple[bool, bool])
        assert_type(fault.error, BaseException | None)
        assert_type(recovery.checkpoint, CheckpointRecord | None)
        assert_type((recovery.replayed_steps, recovery.attempt), tuple[int, int])


def script() -> None:
    with Supervisor(policy) as supervisor:
        assert_type(supervisor.run(blocking, base_model="Qwen/Qwen3-8B"), str)


async def trained_elsewhere(supervisor: Supervisor) -> None:
    def take(old: str, client: tinker.TrainingClient, checkpoint: types.Checkpoint) -> None:
        assert_type(CheckpointRecord.from_listing(checkpoint), CheckpointRecord | None)
        del old, client

    watch = supervisor.watch("session:train:0", on_recovery=take)
    assert_type(watch, Watch)
    assert_type((watch.run_id, watch.state, watch.recoveries), tuple[str, str, int])
    assert_type(watch.client, tinker.TrainingClient | None)
    assert_type(watch.error, BaseException | None)
    watch.cancel()
    await watch.aclose()


async def manually() -> None:
    made = await recover_from_checkpoint("tinker://r/weights/n", restore_optimizer=False)
    assert_type(made, Recovered)
    assert_type(made.client, tinker.TrainingClient)
    assert_type(made.step, int | None)
    await made.aclose("success", deadline_s=5.0)


def explained(error: TinkerRecoveryError) -> object:  # noqa: C901, PLR0911, PLR0912 - one case an error
    match error:
        case RecoveryExhausted() | RecoveryRefused() | RecoveryLost() | LeaseLost():
            return assert_type(error.errors, tuple[BaseException, ...])
        case RunFailed():
            return assert_type(error.run, str)
        case ServiceUnusable():
            return assert_type(error.details, str)
        case RunHeld():
            return assert_type((error.pid, error.host), tuple[int, str])
        case RunFinished():
            return assert_type(error.checkpoint, str | None)
        case CorruptedRun():
            return assert_type(error.run_id, str)
        case NonFiniteLoss():
            return assert_type((error.step, error.value), tuple[int, float])
        case FaultError():
            return assert_type(error.kind, str)
        case StatusUnavailable() | StatusRefused():
            return assert_type(error.status_code, int | None)
        case StatusError():
            return error
        case DeadlineExceeded():
            return assert_type(error.deadline_s, float)
        case AmbiguousRun():
            return assert_type((error.run, error.lineages), tuple[str, tuple[str, ...]])
        case ContradictoryCheckpoints():
            return assert_type(error.paths, tuple[str, ...])
        case NoUsableCheckpoint() | InvalidMetadata():
            checkpoint: CheckpointError = error
            return checkpoint
        case OtherWeights() | JournalError() | StaleAttempt():
            return error
        case UsageError():
            wrong: ValueError = error
            return wrong
    return None


# The supervision tree, by itself


async def serving(child: Child, port: int = 80) -> None:
    child.started(f"on {port}")
    child.heartbeat()
    if port < 0:
        child.ignore()
    assert_type((child.id, child.incarnation), tuple[str, int])


async def tree() -> None:
    spec = ChildSpec(
        id="web",
        start=serving,
        restart="transient",
        shutdown="infinity",
        significant=True,
        backoff=Backoff(0.1, 5.0),
        heartbeat_s=3.0,
        start_timeout_s=30.0,
        max_restarts=5,
        max_seconds=60.0,
    )
    seen: list[SupervisionEvent] = []
    dynamic = DynamicSupervisor(ChildSpec(id="job", start=serving, restart="temporary"))
    async with SupervisionTree(
        [spec, dynamic.as_child()],
        strategy="rest_for_one",
        auto_shutdown="any_significant",
        max_restarts=3,
        max_seconds=60,
        backoff=Backoff.none(),
        on_event=seen.append,
    ) as running:
        assert_type(running, SupervisionTree)
        assert_type(await running.start_child(ChildSpec(id="more", start=serving)), ChildInfo)
        await running.terminate_child("more")
        assert_type(await running.restart_child("more"), ChildInfo)
        await running.delete_child("more")
        info = await dynamic.start_child(8080, id="job-1")
        assert_type((info.state == "running", info.value), tuple[bool, object])
        assert_type(running.which_children(), list[ChildInfo])
        assert_type(running.count_children(), ChildCounts)
        for left in running.abandoned:
            assert_type(left, AbandonedChild)
    SupervisionTree([spec], strategy="all_for_one")  # type: ignore[arg-type]  # has to be refused


def happened(event: SupervisionEvent) -> object:  # noqa: PLR0911 - one case an event
    match event:
        case ChildStarted() | ChildReady():
            return assert_type((event.child, event.incarnation), tuple[str, int])
        case ChildExited():
            return assert_type(event.error, BaseException | None)
        case RestartScheduled():
            return assert_type((event.delay_s, event.restarts), tuple[float, int])
        case ChildRestarted():
            return assert_type(event.downtime_s, float)
        case StopTimedOut():
            return assert_type(event.abandoned, bool)
        case CrashReport():
            return assert_type(event.reason, BaseException)
        case Escalated():
            return assert_type(event.error, BaseException)
    return event.as_attributes()


def overdue(error: StartTimedOut) -> float:
    return assert_type(error.waited_s, float)


def refused(error: SupervisionError) -> object:
    match error:
        case SpecError():
            return assert_type(error.field, str)
        case RestartLimitReached():
            return assert_type(error.root_cause, BaseException)
        case HeartbeatMissed():
            return assert_type(error.silent_s, float)
        case ChildNotReady() | UnexpectedExit() | SupervisorStopped():
            return error
        case ChildError():
            return assert_type(error.child, str)
    return None


ANSWERS: tuple[type[ChildError], ...] = (
    ChildAlreadyPresent,
    ChildAlreadyStarted,
    ChildNotFound,
    ChildRestarting,
    ChildRunning,
    ChildTerminated,
    TooManyChildren,
)
assert_type(supervision.Backoff().delay_s(3), float)


# Telemetry


def exported() -> None:
    with configure_tracing("http://localhost:4317", protocol="grpc", requests=True) as tracing:
        assert_type(tracing, Export)
        assert_type(tracing.endpoint, str | None)
        assert_type(tracing.flush(1.0), bool)
    assert_type(configure_metrics(interval_s=10.0).shutdown(), bool)
    assert_type(redact("Bearer x"), str)
    hide("my own secret")


async def streamed(supervisor: Supervisor) -> AsyncIterator[str]:
    stream = supervisor.events(buffer=100)
    assert_type(stream, EventStream)
    async for event in stream:
        yield shown(event)
    await stream.aclose()


def shown(event: Event) -> str:
    match event:
        case RecoveryEvent():
            line = assert_type(json_line(event), str)
            return assert_type(from_json_line(line), RecoveryEvent).message
        case SupervisionEvent():
            return event.child
        case EventsDropped():
            return str(assert_type(event.count, int))


def names_of(  # noqa: PLR0913, PLR0917 - each word of OTP once
    tree: BaseSupervisor,
    strategy: Strategy,
    restart: Restart,
    shutdown: Shutdown,
    kind: ChildType,
    state: ChildState,
    auto: AutoShutdown,
    outcome: Outcome,
    context: Context,
) -> str:
    SupervisionTree([], strategy=strategy, auto_shutdown=auto)
    ChildSpec(id="x", start=serving, restart=restart, shutdown=shutdown, type=kind)
    assert_type(tree.which_children(), list[ChildInfo])
    return f"{state} {outcome} {context}"


assert_type(__version__, str)


# The test kit


async def tested(folder: Path) -> None:
    dialects: list[Dialect] = list(DIALECTS)
    options: Options = {"long_poll_s": 0.1, "restart": "rollback", "dialect": dialects[0]}
    async with LocalTinker(faults=[FaultRule("fail", 7, "optim_step")], **options) as server:
        server.poison(at_step=12, quiet=True)
        server.inject(FaultRule("slow", request="training_run", delay_s=1.0, times=2))
        server.inject(assert_type(FaultRule.parse("poison@70"), FaultRule))
        server.release()
        assert_type(server.service(), tinker.ServiceClient)
        write_tiny_model(Path("model"), "Qwen/Qwen3-8B")
        async with LocalHub(owner="me") as hub:
            hub.fail(503, "later", times=2)
            repository = hub.repositories["me/sft"]
            assert_type(repository, HubRepository)
            assert_type(repository.commits, list[HubCommit])
            assert_type(hub.environment, dict[str, str])
        server.begin_outage(status=503, rollback=True)
        server.end_outage()
        how: Damage = "bit_flip"
        for run_id in server.runs():
            for stored in server.checkpoints(run_id):
                assert_type(stored, StoredCheckpoint)
                server.damage(stored.path, how)
            state = assert_type(server.run_state(run_id), RunState)
            assert_type((state.steps, state.corrupted), tuple[int, bool])
        assert_type(server.fired, list[FiredFault])
        assert_type(server.stats, RequestStats)
        assert_type(server.sessions(), dict[str, str])
        assert_type(server.tokenizer, LocalTokenizer)
        assert_type(server.tokenizer.write_cache(folder, "base/model"), dict[str, str])
    FaultRule("explode")  # type: ignore[arg-type]  # has to be refused
    dialect: Dialect = "bare"
    assert_type(dialect in DIALECTS, bool)
    async with Network(server.base_url, rtt_s=0.1, loss=0.01) as network:
        assert_type(network.base_url, str)
    async with LocalTinkerProcess(folder, lenient=True, dialect=dialect) as process:
        await process.inject(FaultRule("drop"))
        await process.restart()
        assert_type(await process.run_state("session:train:0"), RunState)
        for sampler in assert_type(await process.samplers(), list[str]):
            await process.expire_sampler(sampler)


@given(schedules(steps=range(20), actions=["poison", "drop"]))
def survives(faults: list[FaultRule]) -> None:
    fault_rules(requests=["optim_step"]).filter(lambda rule: rule not in faults)


def served(folder: Path) -> None:
    serve(root=folder, port=8000, ready=print, step_s=0.1)
