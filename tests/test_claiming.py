"""How the runs of a Supervisor are claimed and given free: decisions, with claims made up here."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from pydantic import SecretStr

from tinker_recovery import ServiceUnusable, StatusUnavailable, UsageError
from tinker_recovery.clock import SYSTEM_CLOCK
from tinker_recovery.journal import holder
from tinker_recovery.journal.holder import Holder
from tinker_recovery.run import claiming
from tinker_recovery.run.claiming import Claiming, Lease, check_lease, give_free, is_dead
from tinker_recovery.service import Endpoint, claims
from tinker_recovery.service.claim_line import Claimant
from tinker_recovery.service.claims import Unguarded
from tinker_recovery.service.guard import ClaimGuard

ENDPOINT = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))


def test_a_run_is_held_in_one_of_three_ways() -> None:
    for lease in ("service", "journal", "both"):
        check_lease(lease)
    with pytest.raises(UsageError, match="lease='file' is not allowed: 'service', 'journal' or"):
        check_lease("file")


class Heartbeats:
    """In place of the thread that sends them."""

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True


class World:
    """The claims of a Supervisor."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        lease: Lease = "service",
        journal: Path | None = None,
        max_wait_s: float = 7.0,
    ) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.told: list[tuple[Any, ...]] = []
        self.answers: list[Any] = []
        monkeypatch.setattr(claiming, "Claims", self._claims)
        monkeypatch.setattr(claiming, "ThreadHeartbeats", self._beats)
        http = SimpleNamespace(endpoint=ENDPOINT, unreachable=lambda *how: self.told.append(how))
        self.reader = SimpleNamespace(http=http)
        self.claiming = Claiming(lease, cast("Any", self.reader), journal, max_wait_s=max_wait_s)

    def _beats(self, *given: Any) -> Heartbeats:
        self.heartbeats = Heartbeats(*given)
        return self.heartbeats

    def _claims(self, http: object, claimant: Claimant, **how: Any) -> Any:
        assert http is self.reader.http
        self.claimant, self.how = claimant, how
        self.claims: Any = SimpleNamespace(enter=self._enter)
        return self.claims

    async def _enter(self, name: str, *, on_held: str, job: str | None) -> Any:
        self.asked.append((name, on_held, job))
        answer = self.answers.pop(0) if self.answers else object()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def enter(self, name: str = "r") -> Any:
        return await self.claiming.enter(name, on_held="wait")


async def test_a_run_is_claimed_for_this_process_which_may_take_the_journals_lease_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    world = World(monkeypatch, "service", Path("journal"))
    guard = await world.claiming.enter("r", on_held="refuse", job="j")
    await world.enter("other")
    assert world.asked == [("r", "refuse", "j"), ("other", "wait", None)]
    assert isinstance(guard, ClaimGuard)
    assert guard._claims is world.claims
    assert cast("Any", guard._reader) is world.reader
    here = Holder.here(now=0.0, lease_s=0.0)
    own = Claimant(here.host, here.pid, here.born, here.machine, str(tmp_path / "journal"))
    assert world.claimant == own
    assert world.how == {
        "is_dead": is_dead,
        "heartbeats": world.heartbeats,
        "clock": SYSTEM_CLOCK,
        "settle_s": claims.SETTLE_S,
        "beat_s": claims.BEAT_S,
        "look_s": claims.LOOK_S,
    }
    assert world.claims.max_wait_s == 7.0
    assert world.heartbeats.given[:2] == (ENDPOINT, claims.BEAT_S)
    world.heartbeats.given[2]("how", 3.0)
    assert world.told == [("how", 3.0)], "whoever listens now"
    assert world.claiming.robs_journal(guard)


@pytest.mark.parametrize(
    ("lease", "claimed", "robs"),
    [("service", True, True), ("both", True, False), ("service", False, False)],
)
async def test_the_lease_of_another_is_taken_only_where_the_claim_alone_decides(
    monkeypatch: pytest.MonkeyPatch, lease: Lease, *, claimed: bool, robs: bool
) -> None:
    world = World(monkeypatch, lease)
    assert world.claimant.journal == "", "it is in memory"
    if not claimed:
        world.answers = [Unguarded("it has no sessions")]
    guard = await world.enter()
    assert (guard.claim is not None) == claimed
    assert world.claiming.robs_journal(guard) == robs


async def test_where_the_journal_has_to_do_the_service_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, "journal")
    guard = await world.enter()
    assert (guard.claim, world.asked) == (None, [])
    assert not world.claiming.robs_journal(guard)


async def test_that_no_claim_can_be_held_is_said_once_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch)
    world.answers = [Unguarded("it has no sessions"), Unguarded("it has no sessions")]
    for name in ("one", "two"):
        assert (await world.enter(name)).claim is None
    (said,) = caplog.messages
    assert "could train run one at once: at this service no claim on it can be held, as it" in said


async def test_a_service_that_has_not_answered_in_time_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.answers = [StatusUnavailable("no answer")]
    with pytest.raises(ServiceUnusable, match=r"run 'r' has not begun within 7 s \(max_wait_s\)"):
        await world.enter()
    assert (await world.enter()).claim is not None


async def test_the_next_run_of_a_name_waits_for_the_end_of_the_last_one_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    first, entered = await world.enter(), anyio.Event()

    async def again() -> None:
        await world.enter()
        entered.set()

    async with anyio.create_task_group() as group:
        group.start_soon(again)
        await anyio.wait_all_tasks_blocked()
        await world.enter("another")
        assert (entered.is_set(), len(world.asked)) == (False, 2)
        first.released.set()
    assert [name for name, *_ in world.asked] == ["r", "another", "r"]


async def test_that_it_waits_is_said_at_growing_intervals(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world, waits = World(monkeypatch), list[float]()
    first, wait = await world.enter(), anyio.move_on_after

    def sooner(seconds: float) -> anyio.CancelScope:
        waits.append(seconds)
        if len(waits) == 3:
            first.released.set()
        return wait(0 if len(waits) < 3 else seconds)

    monkeypatch.setattr(anyio, "move_on_after", sooner)
    await world.enter()
    assert waits == [10.0, 20.0, 40.0]
    said = [message.rpartition(" after ")[2] for message in caplog.messages]
    assert said == [f"{after} s: its next run waits for that" for after in (10, 30)]


async def test_at_the_end_what_is_held_is_given_free_and_no_heartbeat_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released: list[str] = []

    class OwnGuard:
        def __init__(self, claim: str, *_: object) -> None:
            self.claim = claim

        async def release(self) -> None:
            released.append(self.claim)

    monkeypatch.setattr(claiming, "ClaimGuard", OwnGuard)
    world = World(monkeypatch)
    world.answers = ["a", "b"]
    for name in ("one", "two"):
        await world.enter(name)
    await world.claiming.aclose()
    assert sorted(released) == ["a", "b"]
    assert world.heartbeats.closed


# -- who has a run -------------------------------------------------------------------------------


def own(**facts: Any) -> Claimant:
    here = Holder.here(now=0.0, lease_s=0.0)
    return dataclasses.replace(
        Claimant(here.host, here.pid, here.born, here.machine, "/j"), **facts
    )


def test_only_a_process_of_this_machine_is_known_to_be_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holder, "_machine", lambda: "this one")
    assert not is_dead(own())
    assert is_dead(own(born="another"))
    assert not is_dead(own(born="another", machine="that one"))


@pytest.mark.parametrize(
    ("mine", "its", "journal", "said"),
    [
        ("this", "this", "/j", " --journal /j; end it there by Ctrl-C, or kill -INT "),
        ("this", "this", "", "look: tinker-recovery watch r; end it there by Ctrl-C, or kill "),
        ("this", "that", "/j", "look on there: tinker-recovery watch r; end it there by Ctrl-C; "),
        ("this", "", "/j", "look on there: tinker-recovery watch r; end it there by Ctrl-C; "),
        ("", "", "/j", "look on there: tinker-recovery watch r; end it there by Ctrl-C; "),
    ],
)
def test_who_waits_is_told_how_to_look_at_the_process_that_has_the_run(
    monkeypatch: pytest.MonkeyPatch, mine: str, its: str, journal: str, said: str
) -> None:
    monkeypatch.setattr(holder, "_machine", lambda: mine)
    hint = World(monkeypatch).claims.hint
    told = hint("r", own(host="there", machine=its, journal=journal))
    assert said in told
    assert (f"kill -INT {os.getpid()}" in told) == ("kill" in said)


async def test_a_session_has_the_time_to_be_replaced_and_to_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits, wait = list[float](), anyio.move_on_after

    def noted(seconds: float) -> anyio.CancelScope:
        waits.append(seconds)
        return wait(seconds)

    async def close(*_: object) -> None:
        return None

    async def release() -> None:
        waits.append(-1.0)

    gone = anyio.Event()
    gone.set()
    run = SimpleNamespace(
        guard=SimpleNamespace(claim=object(), released=anyio.Event(), release=release),
        policy=SimpleNamespace(close_timeout_s=30.0),
    )
    attempts = [SimpleNamespace(faulty=faulty, gone=gone, close=close) for faulty in (True, False)]
    monkeypatch.setattr(anyio, "move_on_after", noted)
    await give_free(cast("Any", run), cast("Any", attempts))
    assert waits == [60.0, 30.0, -1.0]


async def test_a_run_is_not_given_free_before_a_session_that_is_being_closed_is_gone() -> None:
    log, gone = list[str](), anyio.Event()

    async def close(*given: str) -> None:
        log.extend(given)

    async def release() -> None:
        log.append("released")

    run: Any = SimpleNamespace(
        guard=SimpleNamespace(claim=object(), released=anyio.Event(), release=release),
        policy=SimpleNamespace(close_timeout_s=30.0),
    )
    attempt: Any = SimpleNamespace(faulty=False, gone=gone, close=close)
    async with anyio.create_task_group() as group:
        group.start_soon(give_free, run, [attempt])
        await anyio.wait_all_tasks_blocked()
        assert log == ["interrupted", "the run is over"]
        gone.set()
    assert log[-1] == "released"
