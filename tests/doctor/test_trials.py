"""What the doctor says of each kind of service, at the local server's dialects."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path

import pytest
from loops import MODEL, cancelled_in
from pydantic import SecretStr
from virtual import FAST_CLOCK

from tinker_recovery.doctor import ExamPlan, examine, try_out
from tinker_recovery.doctor.facts import NOT_TRIED, Fact, seed
from tinker_recovery.service import Endpoint, StatusReader, TinkerBackend
from tinker_recovery.testing import DIALECTS, Dialect, LocalTinker

USUAL = {
    "weights restored": "yes",
    "optimizer restored": "yes",
    "seed honoured": "yes",
    "metadata of saves": "kept",
    "user's names kept": "yes",
    "overwriting a name": "replaces",
    "sizes listed": "yes",
    "export": "yes",
    "finish": "yes",
    "search of sessions": "yes",
    "one trainer": "on any machine",
    "corrupted": NOT_TRIED,
    "noise of answers": "none",
}
DIFFERS: dict[Dialect, dict[str, str]] = {
    "hosted": {},
    "forgets_metadata": {"metadata of saves": "forgotten"},
    "refuses_metadata": {"metadata of saves": "refused"},
    "rolls_back": {},
    "ignores_seed": {"seed honoured": "no"},
    "noisy": {
        "weights restored": "within noise",
        # A step's part of the optimizer, and of the seed, is not twenty times the noise there.
        "optimizer restored": "cannot tell",
        "seed honoured": "cannot tell",
        "noise of answers": "some",
    },
    "bare": {
        "sizes listed": "no",
        "export": "missing",
        "finish": "missing",
        "search of sessions": "missing",
        "one trainer": "by the journal",
    },
    "strict": {},
    "server_category": {},
}


async def facts_of(local: LocalTinker) -> dict[str, Fact]:
    """What is found of a service, where nothing is left."""
    endpoint = Endpoint(local.base_url, SecretStr(local.api_key))
    async with StatusReader(endpoint, timeout_s=5.0) as reader:
        plan, backend = ExamPlan(base_model=MODEL), TinkerBackend(local.service)
        report = await examine(plan, backend=backend, reader=reader)
        found = await try_out(
            plan, report.diagnosis, backend=backend, reader=reader, clock=FAST_CLOCK
        )
        assert [each async for each in reader.every_checkpoint()] == []
    return {each.what: each for each in found}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_each_kind_of_service_is_found_out_and_nothing_is_left_there(
    dialect: Dialect,
) -> None:
    async with LocalTinker(dialect=dialect) as local:
        found = await facts_of(local)
        if dialect != "bare":  # there, sessions cannot be finished
            assert "active" not in local.sessions().values()
    assert {what: each.found for what, each in found.items()} == USUAL | DIFFERS[dialect]
    assert all(each.promise.endswith(".") for each in found.values())
    nothing = "Nothing is known of it"
    assert not [each for each in found.values() if each.promise.startswith(nothing)]


@pytest.mark.parametrize(
    "phase", ["seeds: a run", "names", "two claims", "another run", "another seed"]
)
async def test_nothing_is_left_by_trials_that_are_cancelled(phase: str) -> None:
    async with LocalTinker(save_s=0.05) as local:
        endpoint = Endpoint(local.base_url, SecretStr(local.api_key))
        async with StatusReader(endpoint, timeout_s=5.0) as reader:
            plan, backend = ExamPlan(base_model=MODEL), TinkerBackend(local.service)
            report = await examine(plan, backend=backend, reader=reader)
            trials = functools.partial(
                try_out, plan, report.diagnosis, backend=backend, reader=reader
            )
            await cancelled_in(phase, trials)
            assert [each async for each in reader.every_checkpoint()] == []
        assert "active" not in local.sessions().values()


def test_seeds_that_noise_hides_are_not_judged() -> None:
    assert seed(0.0, 0.1, 0.0).found == "yes"
    assert seed(0.1, 0.1, 0.0).found == "no"
    assert seed(0.003, 0.01, 0.001).found == "cannot tell"
    assert seed(0.003, 0.1, 0.001).found == "yes"
    assert seed(0.005, 0.1, 0.001).found == "no"
    assert seed(math.inf, math.inf, 0.0).found == "cannot tell"


def test_the_page_on_exactness_speaks_of_each_kind_of_service() -> None:
    page = (Path(__file__).parents[2] / "docs" / "exactness.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert {each for row in rows for each in re.findall(r"`(\w+)`", row.split("|")[1])} == {
        *DIALECTS
    }
