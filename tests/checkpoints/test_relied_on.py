"""What retention relies on: always something that stays trusted, whatever fault is found next."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import anyio
import httpx
from hypothesis import given
from hypothesis import strategies as st
from made import LINEAGE, NOW, path, record, segment
from pydantic import SecretStr

from tinker_recovery import CheckpointPolicy, RecoveryPolicy
from tinker_recovery.checkpoints import CheckpointRecord, Segment, WeightsFacts, checkpoint_metadata
from tinker_recovery.clock import Clock
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.retention.collector import Collector
from tinker_recovery.service import Endpoint, StatusReader, TinkerBackend

URL = "http://127.0.0.1:1"


@dataclass
class _Run:
    checkpoints: CheckpointState
    segments: list[Segment]
    name: str = "r"
    lineage: str = LINEAGE
    weights: WeightsFacts = field(default_factory=WeightsFacts)
    protected: dict[str, str] = field(default_factory=dict)
    recovering: bool = False
    lease: tuple[int, int] | None = None

    def is_pending(self, record: CheckpointRecord) -> bool:
        del record
        return False


def _service(stored: set[int]) -> httpx.MockTransport:
    """It lists the steps stored, deletes what is asked for, and says nothing of weights."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            stored.discard(int(request.url.path.rpartition("/")[2]))
        if request.url.path.endswith("/weights_info"):
            return httpx.Response(405)
        if not request.url.path.endswith("/checkpoints"):
            return httpx.Response(200, json={})
        return httpx.Response(200, json={"checkpoints": [_entry(step) for step in stored]})

    return httpx.MockTransport(answer)


def _entry(step: int) -> dict[str, object]:
    made = record(step)
    metadata = checkpoint_metadata(
        step=step, lineage=LINEAGE, attempt="a", parent=None, saved_by="schedule"
    )
    return {
        "checkpoint_id": f"weights/{step}",
        "checkpoint_type": "training",
        "time": made.time.isoformat(),
        "tinker_path": made.path,
        "size_bytes": made.size_bytes,
        "user_metadata": json.loads(json.dumps(metadata)),
    }


async def _left(
    steps: set[int], keep_last: int, trusted_to: float, confirmed_to: float, bad: set[int]
) -> set[int]:
    """The steps still stored after a collection."""
    stored = set(steps)
    known = CheckpointState("r")
    known.limits["a"] = trusted_to
    known.confirmed_to = lambda _: confirmed_to
    # As where the journal could not be written: this process knows all the same.
    known.bad = {path("a", step): "wrong weights" for step in bad}
    kept = CheckpointPolicy(keep_last=keep_last, save_best=False, max_deletes_per_s=1e6)
    endpoint = Endpoint(URL, SecretStr("tml-x"))
    async with (
        StatusReader(endpoint, transport=_service(stored), wall=NOW.timestamp) as reader,
        Notebook(Journal(None, service=URL)) as notebook,
    ):
        collaborators = Collaborators(
            RecoveryPolicy(checkpoints=kept),
            TinkerBackend(),
            reader,
            notebook,
            clock=Clock(wall=NOW.timestamp),
        )
        await Collector(collaborators).collect(_Run(known, [segment("a")]))
    return stored


LIMITS = st.none() | st.integers(-1, 12)


@given(
    steps=st.sets(st.integers(0, 12), max_size=6),
    keep_last=st.integers(1, 3),
    trusted_to=LIMITS,
    confirmed_to=LIMITS,
    bad=st.sets(st.integers(0, 12), max_size=2),
)
def test_what_the_worst_fault_would_leave_to_restore_is_never_deleted(
    steps: set[int],
    keep_last: int,
    trusted_to: int | None,
    confirmed_to: int | None,
    bad: set[int],
) -> None:
    trusted = math.inf if trusted_to is None else trusted_to
    confirmed = math.inf if confirmed_to is None else confirmed_to
    left = anyio.run(_left, steps, keep_last, trusted, confirmed, bad)
    for limit in (min(trusted, confirmed), trusted):
        restorable = [step for step in steps - bad if step <= limit]
        assert not restorable or max(restorable) in left
    if not any(step <= min(trusted, confirmed) for step in steps - bad):
        assert left == steps, "nothing is deleted where nothing can be relied on"


def test_what_nothing_keeps_is_deleted() -> None:
    assert anyio.run(_left, {2, 4, 6, 8, 10}, 2, math.inf, math.inf, set()) == {8, 10}
    assert anyio.run(_left, {2, 4, 6, 8, 10}, 1, math.inf, 5.0, set()) == {4, 6, 8, 10}
    assert anyio.run(_left, {2, 4, 6, 8, 10}, 1, 9.0, 5.0, {4}) == {2, 4, 6, 8, 10}
