"""What a dry run restores, by which policy, and what it says of it: a service made up here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made import path, record, segment
from pydantic import SecretStr

from tinker_recovery import NoUsableCheckpoint, RecoveryPolicy, RunHeld, UsageError
from tinker_recovery.checkpoints import WeightsFacts
from tinker_recovery.errors import StatusUnavailable
from tinker_recovery.journal import StoredRun
from tinker_recovery.journal.holder import Holder
from tinker_recovery.recovery import dry_run
from tinker_recovery.recovery.dry_run import LeftRun, Proof, prove
from tinker_recovery.service import Endpoint

URL = "http://127.0.0.1:1"
RUN = "a:train:0"
CHECKPOINT = path(RUN, 4)
FOUND: Any = SimpleNamespace(
    attempts=(segment(RUN),), lineage="mine", origin={"from_checkpoint": "the parent"}
)


class World:
    """What is known of a run, what restoring it ends in, and what was asked of whom."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **left: Any) -> None:
        self.left = LeftRun(**{"name": "r", "found": FOUND, "resumes": True, **left})
        self.asked: list[tuple[object, ...]] = []
        self.closed: list[tuple[object, ...]] = []
        self.policies: list[RecoveryPolicy] = []
        self.snapshot: Any = SimpleNamespace(name="r", weights=WeightsFacts("m", 8))
        self.known: Any = record(4, RUN)
        self.error: BaseException | None = None
        self.seen = WeightsFacts("m", 8)
        self.marks: list[object] = []
        self.recovered_by: dict[str, Any] = {}
        self.quiet: set[str] = set()
        for name in (
            "find_left",
            "snapshot_of",
            "find_checkpoint",
            "status_of",
            "Restore",
            "recover_from_checkpoint",
        ):
            monkeypatch.setattr(dry_run, name, getattr(self, f"_{name.lower()}"))
        monkeypatch.setattr(dry_run, "TinkerBackend", lambda _: self)
        monkeypatch.setattr(dry_run, "StatusReader", SimpleNamespace(by=self._by))

    # As a backend, and what makes a reader

    async def endpoint(self) -> Endpoint:
        return Endpoint(URL, SecretStr("tml-x"))

    async def close(self, connection: Any, *how: object, deadline_s: float) -> None:
        self.closed.append((connection.run_id, how[0], deadline_s))

    @asynccontextmanager
    async def _by(
        self, policy: RecoveryPolicy, endpoint: Endpoint, _: object
    ) -> AsyncIterator[Any]:
        self.policies.append(policy)
        yield SimpleNamespace(http=SimpleNamespace(endpoint=endpoint))

    # In place of what it calls

    async def _find_left(self, _: object, *given: object) -> LeftRun:
        self.asked.append(("find", *given))
        return self.left

    async def _snapshot_of(self, name: str, found: StoredRun, **given: Any) -> Any:
        self.policies.append(given["policy"])
        self.asked.append(("snapshot", name, found.lineage, given["parent"]))
        return self.snapshot

    async def _find_checkpoint(self, _: object, where: str) -> Any:
        if self.known is None:
            raise NoUsableCheckpoint(where)
        return self.known

    async def _status_of(self, _: object, run_id: str) -> Any:
        self.asked.append(("status", run_id))
        return SimpleNamespace(weights=WeightsFacts("m", 8))

    def _training(self) -> Any:
        info = SimpleNamespace(
            model_data=SimpleNamespace(model_name=self.seen.base_model),
            lora_rank=self.seen.lora_rank,
        )
        return SimpleNamespace(get_info=lambda: info)

    def _restore(self, run: Any, collaborators: Any) -> Any:
        async def restore() -> Any:
            self.policies.append(collaborators.policy)
            self.quiet |= collaborators.events.quiet_runs
            await collaborators.notebook.mark_bad("q", "damaged")
            self.marks.append(await collaborators.notebook.notes())
            if self.error is not None:
                raise self.error
            made = SimpleNamespace(training=self._training(), run_id="b:train:0")
            return SimpleNamespace(connection=made, checkpoint=record(4, RUN))

        self.asked.append(("restore", run.name, getattr(run, "lineage", None)))
        return SimpleNamespace(restore=restore, passed_over={"q": "damaged", "p": "gone"})

    async def _recover_from_checkpoint(self, where: str, **given: Any) -> Any:
        async def aclose(*, deadline_s: float) -> None:
            self.closed.append(("aclose", deadline_s))

        self.recovered_by = {"path": where, **given}
        return SimpleNamespace(
            client=self._training(), step=None, run_id="b:train:0", aclose=aclose
        )

    async def prove(self, name: str = "r", **given: Any) -> Proof:
        policy = RecoveryPolicy(
            **{
                "checkpoint_strategy": "best",
                "canary": "auto",
                "max_wait_s": 50.0,
                "close_timeout_s": 3.0,
                "create_timeout_s": 7.0,
                **given.pop("policy", {}),
            }
        )
        return await prove(name, **{"journal": None, "policy": policy, **given})


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("exact", [True, False])
async def test_the_checkpoint_that_a_recovery_would_choose_is_restored_and_its_session_finished(
    monkeypatch: pytest.MonkeyPatch, *, exact: bool, resumes: bool
) -> None:
    world = World(monkeypatch, resumes=resumes)
    proof = await world.prove(policy={"restore_optimizer": exact})
    assert proof == Proof(
        "r",
        CHECKPOINT,
        4,
        "b:train:0",
        exact,
        "m",
        8,
        resumes=resumes,
        passed_over=["q: damaged", "p: gone"],
    )
    assert world.closed == [("b:train:0", "success", 3.0)]
    assert ("snapshot", "r", "mine", "the parent") in world.asked
    assert world.quiet == {"r"}, "it is no recovery, and the log does not say so"
    (notes,) = world.marks
    assert not notes.bad, "to reject for good is for a recovery"  # type: ignore[attr-defined]  # of the journal


@pytest.mark.parametrize(
    ("trained", "given", "used"),
    [(None, None, "best"), ("latest", None, "latest"), ("latest", CHECKPOINT, CHECKPOINT)],
)
async def test_it_is_chosen_as_the_run_was_trained_without_a_canary_and_without_waiting(
    monkeypatch: pytest.MonkeyPatch, trained: str | None, given: str | None, used: str
) -> None:
    world = World(monkeypatch, strategy=trained)
    proof = await world.prove(checkpoint=given)
    policy = world.policies[-1]
    assert (policy.checkpoint_strategy, policy.canary, policy.max_wait_s) == (used, None, 0.0)
    assert proof.resumes == (given is None), "the program goes back to its own choice"
    assert (policy.close_timeout_s, world.policies[0].max_wait_s) == (3.0, 50.0)


@pytest.mark.parametrize("there", [True, False])
async def test_a_journal_that_is_not_there_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, there: bool
) -> None:
    world, file = World(monkeypatch), tmp_path / "journal.db"
    if there:
        file.touch()
    await world.prove(journal=file, lineage="mi")
    assert world.asked[0] == ("find", "r", file if there else None, "mi")
    assert file.exists() == there


async def test_of_a_run_that_is_being_trained_only_a_checkpoint_that_is_named_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, holder=Holder("here", "m", 7, "1", 1.0, 2.0))
    with pytest.raises(RunHeld, match="--checkpoint PATH"):
        await world.prove()
    assert (await world.prove(checkpoint=CHECKPOINT)).checkpoint == CHECKPOINT
    assert ("restore", "r", "mine") in world.asked
    assert ("status", RUN) in world.asked
    world.asked.clear()
    with pytest.raises(UsageError):
        await world.prove(checkpoint="no path")
    assert world.asked == [], "that is seen without the service"


@pytest.mark.parametrize("found", [None, SimpleNamespace(attempts=(), lineage="mine", origin={})])
async def test_where_nothing_says_how_many_steps_a_checkpoint_has_none_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, found: Any
) -> None:
    world = World(monkeypatch, found=found)
    with pytest.raises(NoUsableCheckpoint, match="give one"):
        await world.prove()
    named = World(monkeypatch, found=found, name=RUN)
    named.known = record(4, RUN, lineage="another")
    assert (await named.prove(checkpoint=CHECKPOINT)).step == 4, "its path says whose it is"
    assert ("status", RUN) in named.asked
    for named.known in (record(4, "c:train:0", lineage="another"), None):
        with pytest.raises(UsageError, match="is no checkpoint of run"):
            await named.prove(checkpoint=path("c:train:0", 4))


async def test_what_any_attempt_of_a_run_began_with_may_be_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = path("c:train:0", 4)
    found = SimpleNamespace(
        attempts=(segment(RUN, 4, parent), segment("b:train:0")), lineage="mine", origin={}
    )
    world = World(monkeypatch, found=found)
    world.known = record(4, "c:train:0", lineage="another")
    assert (await world.prove(checkpoint=parent)).resumes is False
    assert ("status", "b:train:0") in world.asked, "of the newest"


@pytest.mark.parametrize("what", ["fails", "is another"])
async def test_its_session_is_finished_whatever_it_turns_out_to_be(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    world = World(monkeypatch)
    if what == "fails":
        world.error = StatusUnavailable("no answer")
    else:
        world.seen = WeightsFacts("m", 16)
    with pytest.raises((StatusUnavailable, NoUsableCheckpoint)):
        await world.prove()
    assert len(world.closed) == (what != "fails"), "where restoring it fails there is none"


@pytest.mark.parametrize("exact", [True, False])
async def test_a_checkpoint_that_is_none_of_ours_is_loaded_and_said_to_resume_nothing(
    monkeypatch: pytest.MonkeyPatch, *, exact: bool
) -> None:
    world = World(monkeypatch)
    world.known = None
    proof = await world.prove(
        checkpoint=CHECKPOINT, policy={"restore_optimizer": exact, "status_timeout_s": 2.0}
    )
    assert proof == Proof("r", CHECKPOINT, None, "b:train:0", exact, "m", 8, resumes=False)
    assert world.closed == [("aclose", 3.0)]
    given = world.recovered_by
    assert given["path"] == CHECKPOINT
    assert (given["restore_optimizer"], given["create_timeout_s"]) == (exact, 7.0)
    assert given["status_timeout_s"] == 2.0
    world.seen = WeightsFacts(None, None)
    assert (await world.prove(checkpoint=CHECKPOINT)).base_model is None
