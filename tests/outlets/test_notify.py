"""Notifications, by the real apprise to a real webhook."""

from __future__ import annotations

import functools
import logging
import time
from pathlib import Path

import pytest
from inspection import event_sink
from loops import MODEL, InstantClock, policy, quick, train, until
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from webhook import SECRET, Hook

from tinker_recovery import (
    Attempt,
    LeaseLost,
    Notify,
    RecoveryEvent,
    RecoveryExhausted,
    Supervisor,
    UsageError,
)
from tinker_recovery.outlets import outlets
from tinker_recovery.outlets.notify import DEFAULT_TOPICS, TOPICS, Message, Teller, digest
from tinker_recovery.telemetry import names, redact
from tinker_recovery.testing import FaultRule, LocalTinker


def _has(hook: Hook, text: str) -> bool:
    return text in hook.texts


async def _given_up(local: LocalTinker, supervisor: Supervisor) -> None:
    local.poison(at_step=7)
    local.inject(FaultRule("fail", request="load_weights", times=3))
    with pytest.raises(RecoveryExhausted):
        async with supervisor:
            await supervisor.run(functools.partial(train, steps=9), base_model=MODEL, name="sft-42")


async def test_a_run_that_is_given_up_is_told_once_before_the_supervisor_is_left(
    local: LocalTinker, hook: Hook
) -> None:
    clock = InstantClock(poll_interval_s=30.0)
    await _given_up(local, Supervisor(policy(), notify=[hook.apprise_url], clock=clock.clock))
    (sent,) = hook.sent
    assert sent["type"] == "failure"
    assert sent["title"].endswith(": run sft-42: given up")
    assert sent["message"].count("\n") == 0
    assert "run sft-42: " in sent["message"]
    assert "attempts" in sent["message"]


async def test_a_run_that_ends_by_an_error_of_its_own_is_told_and_one_that_ends_well_is_not(
    local: LocalTinker, hook: Hook
) -> None:
    async def fails(attempt: Attempt) -> None:
        await train(attempt, steps=2)
        raise ValueError("no such file")

    async with Supervisor(quick(), notify=[hook.apprise_url]) as supervisor:
        await supervisor.run(functools.partial(train, steps=2), base_model=MODEL, name="well")
        with pytest.raises(ValueError, match="no such file"):
            await supervisor.run(fails, base_model=MODEL, name="badly")
    (sent,) = hook.sent
    assert sent["title"].endswith(": run badly: given up")
    assert "ValueError: no such file" in sent["message"]
    assert local.runs()


async def test_what_happens_within_the_time_of_a_digest_comes_in_one_notification(
    local: LocalTinker, hook: Hook
) -> None:
    async with Supervisor(quick(), notify=Notify(hook.apprise_url, every_s=3600.0)) as supervisor:
        sink = event_sink(supervisor)
        sink.emit(names.EVENT_GAVE_UP, "first", "it failed")
        await until(lambda: len(hook.sent) == 1)
        for name in ("second", "third"):
            sink.emit(names.EVENT_GAVE_UP, name, "it failed")
        sink.emit(names.EVENT_MASS_FAILURE, "", "3 runs failed alike")
        sink.emit(names.EVENT_MASS_OVER, "", "3 runs have recovered")
        sink.emit(names.EVENT_COMPLETED, "fourth", "recovered")
    assert len(hook.sent) == 2, "the rest is not held back by the end"
    assert hook.sent[1]["title"].endswith(
        ": 2 x given up, many runs fail, many runs have recovered"
    )
    assert [line.split(" ", 1)[1] for line in hook.sent[1]["message"].splitlines()] == [
        "run second: it failed",
        "run third: it failed",
        "3 runs failed alike",
        "3 runs have recovered",
    ]
    assert local.base_url


async def test_a_hook_that_hangs_delays_neither_a_recovery_nor_for_long_the_exit(
    local: LocalTinker,
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(outlets, "EXIT_S", 0.2)
    hook.go_on.clear()
    local.poison(at_step=2)
    notify = Notify(hook.apprise_url, on={"fault", "recovered", "finished"}, every_s=0.0)
    async with Supervisor(quick(), notify=notify) as supervisor:
        await supervisor.run(functools.partial(train, steps=4), base_model=MODEL, name="sft")
        left = time.monotonic()
    assert time.monotonic() - left < 3.0
    assert len(supervisor.runs[0].recoveries) == 1
    (warning,) = [each for each in caplog.records if "notify[0]" in each.getMessage()]
    assert "has not taken what was last sent within 0.2 s" in warning.getMessage()
    hook.go_on.set()


async def test_a_hook_that_refuses_is_warned_of_once_and_nothing_else_happens(
    local: LocalTinker, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    hook.status = 500
    caplog.set_level(logging.DEBUG, names.SCOPE)  # a command tested before may have raised it
    notify = Notify(hook.apprise_url, every_s=0.0)
    async with Supervisor(quick(), notify=notify) as supervisor:
        for name in ("first", "second", "third"):
            event_sink(supervisor).emit(names.EVENT_GAVE_UP, name, "it failed")
            await until(functools.partial(_has, hook, f"run {name}"))
    said = [each for each in caplog.records if "notify[0] (json://...)" in each.getMessage()]
    assert [each.levelno for each in said] == [logging.WARNING, logging.DEBUG, logging.DEBUG]
    assert "did not take the notification" in said[0].getMessage()
    assert local.base_url


async def test_no_url_is_in_any_log_span_event_error_journal_or_repr(
    local: LocalTinker,
    hook: Hook,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG, names.SCOPE)  # a command tested before may have raised it
    hook.status = 500
    seen: list[RecoveryEvent] = []
    clock = InstantClock(poll_interval_s=30.0)
    supervisor = Supervisor(
        policy(),
        notify=[hook.apprise_url],
        heartbeat_url=f"http://127.0.0.1:{hook.port}/{SECRET}",
        on_event=seen.append,
        clock=clock.clock,
    )
    await _given_up(local, supervisor)
    assert hook.sent
    assert any(SECRET in path for path in hook.paths)
    shown = [
        caplog.text,
        repr(seen),
        repr(vars(supervisor)),
        *(s.to_json() for s in spans.get_finished_spans()),
    ]
    shown += [repr(vars(record)) for record in caplog.records]
    shown += [path.read_bytes().decode(errors="replace") for path in _files(tmp_path)]
    assert SECRET not in "\n".join(shown)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"notify": [f"nonesuch://{SECRET}"]}, r"notify\[0\]='nonesuch://...' is not allowed"),
        ({"notify": ["json://127.0.0.1", 7]}, r"notify\[1\] is not allowed"),
        ({"notify": f"json://{SECRET}"}, "notify is not allowed as a text"),
        ({"heartbeat_url": f"ftp://host/{SECRET}"}, "heartbeat_url is not allowed"),
        ({"heartbeat_url": f"http://host:no-port/{SECRET}"}, "heartbeat_url is not allowed"),
        ({"heartbeat_url": f"http://host/{SECRET}\n"}, "heartbeat_url is not allowed"),
    ],
)
def test_an_address_that_cannot_work_is_refused_and_not_shown(
    given: dict[str, object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Supervisor(policy(), **given)  # type: ignore[arg-type]  # wrong on purpose
    assert SECRET not in f"{caught.value!r}{caplog.text}"


def test_topics_and_times_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="on='nothing' is not allowed"):
        Notify(on=["nothing"])  # type: ignore[list-item]  # wrong on purpose
    with pytest.raises(UsageError, match="on='given_up' is not allowed: a collection"):
        Notify(on="given_up")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(UsageError, match="every_s=-1"):
        Notify(every_s=-1)


def test_without_apprise_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    with pytest.raises(UsageError, match=r'pip install "tinker-recovery\[notify\]"'):
        Notify("json://127.0.0.1")


async def test_the_variable_says_whom_to_notify_where_the_program_does_not(
    local: LocalTinker, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_RECOVERY_NOTIFY", f"{hook.apprise_url} {hook.apprise_url}/second")
    async with Supervisor() as supervisor:
        event_sink(supervisor).emit(names.EVENT_GAVE_UP, "sft", "it failed")
    assert sorted(hook.paths) == [f"/{SECRET}", f"/{SECRET}/second"]
    async with Supervisor(notify=[]) as supervisor:
        event_sink(supervisor).emit(names.EVENT_GAVE_UP, "sft", "it failed")
    assert len(hook.paths) == 2
    assert local.base_url


def test_a_lost_lease_is_told_as_one_however_it_is_noticed() -> None:
    teller = Teller(DEFAULT_TOPICS)
    lost = {names.FAULT_KIND: "lease_lost"}
    by_event = teller.of_event(RecoveryEvent(names.EVENT_DETECTED, "a", "taken", lost))
    assert by_event is not None
    assert by_event.what == "lease lost"
    assert teller.of_end("a", LeaseLost("taken", run="a")) is None, "it was said"
    by_end = teller.of_end("b", LeaseLost("taken", run="a"))
    assert by_end is not None
    assert by_end.what == "lease lost"
    assert teller.of_event(RecoveryEvent(names.EVENT_DETECTED, "c", "it failed")) is None
    assert teller.of_end("c", KeyboardInterrupt()) is None
    assert teller.of_end("c", None) is None
    finished = Teller(TOPICS).of_end("c", None)
    assert finished is not None
    assert finished.what == "finished"


def test_a_digest_of_very_many_is_short_and_shows_no_secret() -> None:
    messages = [Message("given up", "x" * 9000 + "\n\x1b[31m", f"run-{at}") for at in range(500)]
    title, body, bad = digest(messages)
    assert title.endswith(": 500 x given up")
    assert bad
    assert len(body.splitlines()) == 41
    assert body.endswith("and 460 more: see the log")
    assert len(body) < 41 * 510
    _, body, bad = digest([Message("recovered", "with tml-a-key-of-mine", "a")])
    assert not bad
    assert body.endswith("run a: with ***")


def test_the_address_of_who_is_notified_is_hidden_from_then_on_in_every_text() -> None:
    Notify("json://127.0.0.1:1/only-of-this-test-17")
    assert redact("cannot reach /only-of-this-test-17 now") == "cannot reach /*** now"


def test_what_a_library_logs_for_others_is_logged_as_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Notify("json://127.0.0.1:1/")
    logging.getLogger("urllib3.connectionpool").warning("of the user's own request")
    assert "of the user's own request" in caplog.text
