"""What a run costs, in tokens and in money: against what the service itself has counted."""

from __future__ import annotations

import functools
import json
import sqlite3
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import tinker
from click.testing import CliRunner, Result
from custom_losses import do_without_pytorch, squared
from hypothesis import given
from hypothesis import strategies as st
from loops import ADAM, MODEL, SEED, batch, policy, train
from tinker import types

from tinker_recovery import Attempt, RecoveryPolicy, Supervisor, policy_from_settings
from tinker_recovery.cli import main
from tinker_recovery.costs import KINDS, LOOP, Kind, Meter, Prices, Tokens, bill, usage_of
from tinker_recovery.errors import UsageError
from tinker_recovery.journal.journal import default_path
from tinker_recovery.journal.reading import read_run
from tinker_recovery.report import figures_of
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12
BATCH = 8
"""Tokens of each batch."""
PROMPT = types.ModelInput.from_ints([3, 14, 15, 9, 26])
PARAMS = types.SamplingParams(max_tokens=6, temperature=1.0)


async def billed(local: LocalTinker) -> Counter[str]:
    """Tokens by our names, as the service has counted them for all its sessions."""
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)

    def ask() -> types.BillingUsageResponse:
        client = tinker.AdminClient(base_url=local.base_url, api_key=local.api_key)
        try:
            return client.get_billing_usage(end - timedelta(days=1), end).result()
        finally:
            client.holder.close()

    usage = await anyio.to_thread.run_sync(ask)
    counted: Counter[str] = Counter()
    for each in usage.data:
        match each.event_info:
            case types.TrainingBillingEvent(token_count=number):
                counted["trained"] += number
            case types.SamplingPrefillBillingEvent(token_count=number):
                counted["prompt"] += number
            case types.SamplingSampleBillingEvent(token_count=number):
                counted["sampled"] += number
    return counted


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def shown(name: str, *arguments: str) -> dict[str, Any]:
    result = cli("show", name, "--json", *arguments)
    assert result.exit_code == 0, result.output
    cost: dict[str, Any] = json.loads(result.stdout)["cost"]
    return cost


START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}


async def test_the_tokens_of_a_run_with_a_recovery_are_those_that_the_service_has_counted(
    local: LocalTinker,
) -> None:
    local.poison(at_step=7)
    async with Supervisor(policy(canary="auto")) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **START, name="sft")
    cost = shown("sft")
    trained, checked = cost["tokens"]["trained"][""], cost["tokens"]["checked"][""]
    # The pass that the poisoned run has answered with an error was not counted by it.
    assert await billed(local) == {"trained": trained + checked - BATCH}
    # Every batch once is what the run needs; what is above that was done again.
    assert cost["tokens_replayed"] == {"trained": {"": trained - STEPS * BATCH}}
    assert trained > STEPS * BATCH


async def test_samples_are_counted_by_prompt_and_answer(local: LocalTinker) -> None:
    local.poison(at_step=4)

    async def loop(attempt: Attempt) -> None:
        training: tinker.TrainingClient = attempt.client
        other = await attempt.service.create_sampling_client(base_model="Qwen/Other")
        for step in range(attempt.start_step, 6):
            sampler = await training.save_weights_and_get_sampling_client()
            await sampler.sample(PROMPT, 3, PARAMS)
            await other.compute_logprobs(PROMPT)
            await training.forward_backward(batch(step), "cross_entropy")
            await training.optim_step(ADAM)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(loop, **START, name="rl")
    tokens = shown("rl")["tokens"]
    counted = await billed(local)
    rounds = tokens["prompt"][""] // PROMPT.length
    assert rounds > 6, "a round was sampled again"
    assert tokens["sampled"]["Qwen/Other"] == rounds, "the SDK asks for a token each time"
    assert tokens["sampled"][""] + rounds == counted["sampled"]
    assert tokens["cached"][""] == 2 * rounds * PROMPT.length
    assert tokens["prompt"][""] + tokens["prompt"]["Qwen/Other"] == counted["prompt"]
    assert shown("rl")["tokens_replayed"]["sampled"][""] > 0


async def test_what_the_loop_computes_for_itself_is_counted_as_the_service_counts_it(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward passes, and a loss of its own, which the SDK computes with two passes."""

    do_without_pytorch(monkeypatch)

    async def loop(attempt: Attempt) -> None:
        training: tinker.TrainingClient = attempt.client
        await training.forward(batch(0), "cross_entropy")
        await training.forward_backward_custom(batch(1), squared)
        await training.optim_step(ADAM)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(loop, **START, name="own")
    trained = shown("own")["tokens"]["trained"][""]
    assert await billed(local) == {"trained": trained}
    assert trained == 3 * BATCH


async def test_a_run_that_is_continued_adds_to_what_it_has_cost(
    local: LocalTinker, tmp_path: Path
) -> None:
    for steps in (7, STEPS):

        async def loop(attempt: Attempt, steps: int = steps) -> None:
            await train(attempt, steps=steps)
            if steps < STEPS:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) if steps < STEPS else _nothing():
            async with Supervisor(policy(), journal=tmp_path / "j.db") as supervisor:
                await supervisor.run(loop, **START, name="twice")
    cost = shown("twice", "--journal", str(tmp_path / "j.db"))
    billed_in_all = (await billed(local))["trained"]
    assert cost["tokens"]["trained"][""] == billed_in_all
    assert cost["tokens_replayed"].get("trained", {"": 0})[""] == billed_in_all - STEPS * BATCH


class _nothing:  # noqa: N801 - stands where a context manager is called
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


async def test_a_batch_that_can_be_read_only_once_trains_as_without_supervision(
    local: LocalTinker,
) -> None:
    """The SDK reads it once, so it takes an iterator."""

    def once(step: int) -> Iterator[types.Datum]:
        return iter(batch(step))

    async def loop(attempt: Attempt) -> None:
        training: tinker.TrainingClient = attempt.client
        for step in range(attempt.start_step, 3):
            await training.forward_backward(once(step), "cross_entropy")  # type: ignore[arg-type]  # not a list
            await training.optim_step(ADAM)

    async with Supervisor(policy(canary="auto")) as supervisor:
        await supervisor.run(loop, **START)
        await supervisor.run(functools.partial(train, steps=3), **START)
    ids = [run.segments[-1].run_id for run in supervisor.runs]
    assert local.run_state(ids[0]) == local.run_state(ids[1])


# Money


async def prices(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, which it ends whatever the SDK still does there."""
    command = [sys.executable, "-m", "tinker_recovery.cli", "prices", *arguments]
    return await anyio.run_process(command, check=False)


async def test_a_table_of_prices_in_the_policy_gives_the_cost_everywhere(
    local: LocalTinker, tmp_path: Path
) -> None:
    local.poison(at_step=7)
    prices = {MODEL: Prices(trained=2_000_000.0)}
    async with Supervisor(policy(prices=prices)) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **START, name="priced")
    cost = shown("priced")
    trained = cost["tokens"]["trained"][""]
    assert cost["usd"] == pytest.approx(2 * trained)
    assert cost["usd_replayed"] == pytest.approx(2 * (trained - STEPS * BATCH))
    text = cli("show", "priced").stdout
    assert f"tokens: {trained} trained" in text
    assert f"cost: {2 * trained:.2f} USD" in text
    page = tmp_path / "page.html"
    report = json.loads(cli("report", "priced", "-o", str(page), "--json").stdout)
    assert report["usd"] == cost["usd"]
    assert f"{2 * trained:.2f} USD" in page.read_text()
    spent = report["time_spent_s"]
    assert set(spent) == {"kept", "again", "no_step", "recoveries", "no_process"}
    assert sum(spent.values()) == pytest.approx(report["elapsed_s"])
    alone = json.loads(cli("report", "priced", "--json").stdout)
    assert alone == {**report, "report": None}


async def test_the_rates_of_the_organization_price_a_run_that_had_no_table(
    local: LocalTinker, tmp_path: Path
) -> None:
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=3), **START, name="later")
    del local
    table = tmp_path / "prices.toml"
    made = await prices("-o", str(table))
    assert made.returncode == 0, made.stderr
    assert tomllib.loads(table.read_text()) == {MODEL: {"trained": 1.0}}
    assert shown("later")["usd"] is None
    assert shown("later", "--prices", str(table))["usd"] == pytest.approx(3 * BATCH / 1e6)
    assert policy_from_settings(prices=str(table)).prices == {MODEL: Prices(trained=1.0)}


async def test_prices_of_a_service_that_does_not_have_them_are_refused_with_what_to_do(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("status", request="billing_usage", status=403))
    made = await prices()
    assert made.returncode == 3
    assert b"billing-admin role" in made.stderr


def test_a_wrong_table_is_refused_with_the_line_and_what_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('["Qwen/Qwen3-8B"]\ntrained = -1\n')
    with pytest.raises(UsageError, match=r"prices=.*greater than or equal to 0"):
        policy_from_settings(prices=str(file))
    refused = cli("show", "any", "--prices", str(file))
    assert refused.exit_code == 2
    assert "Qwen/Qwen3-8B.trained" in refused.output
    file.write_text('["Qwen/Qwen3-8B"]\ntrain = 1\n')
    with pytest.raises(UsageError, match="prices="):
        policy_from_settings(prices=str(file))
    with pytest.raises(UsageError, match="cannot be read"):
        policy_from_settings(prices=str(tmp_path / "none.toml"))


def test_the_table_of_a_policy_is_shown_among_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('["Qwen/Qwen3-8B"]\ntrained = 0.44\n')
    monkeypatch.setenv("TINKER_RECOVERY_PRICES", str(file))
    assert '"trained": 0.44' in cli("config", "show").stdout.replace("\n", "").replace("  ", "")
    rows = json.loads(cli("config", "show", "--json").stdout)["settings"]
    (row,) = [row for row in rows if row["name"] == "prices"]
    assert row["value"] == {"Qwen/Qwen3-8B": {"trained": 0.44}}


def test_what_has_no_price_is_named_and_not_taken_for_free() -> None:
    tokens = Tokens({("trained", ""): 1_000_000, ("sampled", "Other"): 5})
    priced = bill(tokens, {"Own": Prices(trained=3.0)}, "Own")
    assert (priced.usd, priced.unpriced) == (3.0, ("Other",))
    assert bill(tokens, {"Own": Prices(trained=3.0)}, "").unpriced == ("", "Other")
    assert bill(tokens, {"*": Prices(trained=3.0, sampled=1e6)}, "").usd == 8.0


async def test_a_journal_of_a_version_without_tokens_is_read_as_it_is(
    local: LocalTinker,
) -> None:
    del local
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=2), **START, name="old")
    with closing(sqlite3.connect(default_path())) as database, database:
        for later in ("tokens", "discarded", "silences"):
            database.execute(f"DROP TABLE {later}")
        database.execute("PRAGMA user_version = 2")
    assert shown("old")["tokens"] == {}
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=2), **START, name="new")
    run = read_run(default_path(), "new")
    assert run is not None
    assert figures_of(run).tokens == {"trained": {"": 2 * BATCH}}


# The arithmetic


COUNTS = st.dictionaries(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(["", "A", "B"])), st.integers(1, 10**9)
)


@given(COUNTS)
def test_tokens_survive_json(counts: dict[tuple[Kind, str], int]) -> None:
    assert Tokens.from_json(json.loads(json.dumps(Tokens(counts).to_json()))) == Tokens(counts)


PLAIN = st.none() | st.integers() | st.text(max_size=3)


@given(
    PLAIN
    | st.dictionaries(st.sampled_from([*KINDS, "x"]), PLAIN | st.dictionaries(st.text(), PLAIN))
)
def test_whatever_stands_there_instead_of_tokens_is_left_out(plain: object) -> None:
    assert all(type(number) is int for number in Tokens.from_json(plain).counts.values())


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 100)) | st.just("save"), max_size=60),
    st.integers(0, 30),
)
def test_replayed_is_what_was_counted_behind_the_checkpoint_that_was_restored(
    moves: list[tuple[Kind, int] | str], back_to: int
) -> None:
    meter, step = Meter(), 0
    all_of: Counter[Kind] = Counter()
    kept: Counter[Kind] = Counter()
    for move in moves:
        if isinstance(move, str):
            step += 1
            meter.mark(step)
            kept = Counter(all_of) if step <= back_to else kept
        else:
            meter.add(*move)
            all_of[move[0]] += move[1]
    usage = usage_of([(meter.read(), meter.up_to(back_to))])
    for kind in KINDS:
        assert usage.tokens.of(kind) == all_of[kind]
        again = all_of[kind] - kept[kind] if kind in LOOP else 0
        assert usage.replayed.of(kind) == again


@given(st.integers(1, 5000), st.integers(0, 6000))
def test_of_many_saves_what_was_kept_is_never_too_much(saves: int, back_to: int) -> None:
    meter = Meter()
    for step in range(1, saves + 1):
        meter.add("trained", 1)
        meter.mark(step)
    assert meter.up_to(back_to).of("trained") <= min(back_to, saves)
    assert meter.up_to(saves).of("trained") == saves


def test_a_policy_takes_prices_as_they_are_written() -> None:
    assert RecoveryPolicy(prices={"*": {"trained": 1.0}}).prices == {"*": Prices(trained=1.0)}
