"""``tinker-recovery doctor``: what the configured service does, and what can be promised there."""

from __future__ import annotations

import asyncio
import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from tinker_recovery.cli.common import echo, indented, leave, say_error, show_below
from tinker_recovery.telemetry.text import as_text, counted

if TYPE_CHECKING:
    from tinker_recovery.doctor import ExamPlan, Fact, Report

_UNKNOWN, _INTERRUPTED = 3, 130
_WIDTH = 80
_STATUS = {True: 0, False: 1, None: _UNKNOWN}


@click.command()
@click.option(
    "--base-model", default="Qwen/Qwen3-8B", show_default=True, help="The model to train."
)
@click.option("--rank", default=8, show_default=True, type=click.IntRange(1), help="LoRA rank.")
@click.option(
    "--steps",
    default=4,
    show_default=True,
    type=click.IntRange(2, 1000),
    help="Steps before the checkpoint; more of them make the optimizer's effect larger.",
)
@click.option(
    "--timeout",
    "timeout_s",
    default=900.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds for the experiment, and again for the rest; each step of the clean-up may take "
    "10 s more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on the last line.")
def command(base_model: str, rank: int, steps: int, timeout_s: float, *, as_json: bool) -> None:
    r"""Find out what a service does: above all, whether it really restores the optimizer.

    A restore "with optimizer" that leaves the optimizer cold raises nothing: the weights are right,
    but every later update differs. So this trains a few steps, saves, and takes the same next step
    in three ways: live, resumed with optimizer, and resumed with weights only. Logprobs of a fixed
    batch before and after that step show which of them agree. The service's own noise is measured
    as well.

    Then it tries what else the service does (metadata, seeds, names, sizes, overwriting, export,
    finish, search), and says of each what can be promised there. Two claims on one name show
    whether it refuses a process whose run another has taken over. What cannot be tried without
    breaking a run, as whether a corrupted one is reported, is "not tried".

    The service is the one that TINKER_BASE_URL and TINKER_API_KEY name. Costs up to eleven sessions
    and a few thousand tokens, more if the first result is inconclusive. What it stores is deleted
    and its sessions are finished at the end, also after Ctrl-C.

    \b
    Try it where the answer is known:
        tinker-recovery serve
        tinker-recovery serve --cold-optimizer

    Exit status: 0 if the optimizer is restored, exactly or within the service's own noise; 1 if it
    is not, or not exactly, or if the weights come back changed; 2 for a wrong option; 3 if the
    service was out of reach or too noisy to tell; 130 after Ctrl-C.
    """
    from tinker_recovery.doctor import ExamPlan
    from tinker_recovery.telemetry import redact

    plan = ExamPlan(
        base_model=base_model,
        rank=rank,
        steps=steps,
        timeout_s=timeout_s,
        close_s=min(10.0, timeout_s / 2),
    )
    try:
        report = asyncio.run(_examine(plan))
    except KeyboardInterrupt:
        say_error("interrupted", _INTERRUPTED)
        leave(_INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - any error means that the question is still open
        show_below(error)
        say_error(f"no result: {redact(str(error))}", _UNKNOWN)
        leave(_UNKNOWN)
    else:
        echo(json.dumps(_as_json(report)) if as_json else _as_text(report))
        leave(_STATUS[report.diagnosis.finding.real])


async def _examine(plan: ExamPlan) -> Report:
    from tinker_recovery.doctor import examine, try_out
    from tinker_recovery.doctor.facts import restores
    from tinker_recovery.service import StatusReader, TinkerBackend
    from tinker_recovery.service.contact import FirstContact
    from tinker_recovery.telemetry import redact

    began = time.monotonic()

    def progress(phase: str) -> None:
        echo(f"[{time.monotonic() - began:6.1f} s] {indented(phase)}", err=True)

    backend = TinkerBackend()
    endpoint = await backend.endpoint()
    async with StatusReader(endpoint) as reader:
        with FirstContact(endpoint):
            report = await examine(plan, backend=backend, reader=reader, progress=progress)
        try:
            facts = await try_out(
                plan, report.diagnosis, backend=backend, reader=reader, progress=progress
            )
        except Exception as error:  # noqa: BLE001 - what was found of the optimizer counts all the same
            progress(f"the rest of the table was not found out: {redact(str(error))}")
            facts = restores(report.diagnosis)
        return replace(report, facts=facts)


def _as_text(report: Report) -> str:
    found = report.diagnosis
    rows = {
        "changed by one step": found.one_step,
        "restored weights differ by": found.weights_off,
        "after one step without the optimizer, differ by": found.optimizer_part,
        "after one step with the optimizer, differ by": found.restored_off,
        "the service's own noise": max(found.noise_before, found.noise_after),
    }
    lines = [f"  {name:<48}{value:.3g}" for name, value in rows.items()]
    about = (
        f"{report.base_url}, tinker {report.sdk}, {as_text(report.base_model)}, "
        f"rank {report.rank}, {counted(report.steps, 'step')} at {report.learning_rate:g}"
    )
    return "\n".join([found.words, "", f"Logprobs at {about}:", *lines, *_table(report.facts)])


def _table(facts: Sequence[Fact]) -> list[str]:
    """The facts in two columns, and what each means below them; at most 80 wide."""
    lines = ["", "What this service does:"] if facts else []
    for each in facts:
        detail = f" ({each.detail})" if each.detail else ""
        lines += textwrap.wrap(
            f"{each.what:<20}{each.found}{detail}",
            _WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * 22,
        )
        lines += textwrap.wrap(
            each.promise, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return lines


def _as_json(report: Report) -> dict[str, object]:
    """Infinite distances, which JSON cannot express, are null."""
    found = asdict(report.diagnosis)
    finding = report.diagnosis.finding
    numbers = {
        name: value if value < float("inf") else None
        for name, value in found.items()
        if isinstance(value, float)
    }
    about = {
        name: value for name, value in asdict(report).items() if name not in ("diagnosis", "facts")
    }
    return {
        "finding": finding.value,
        "real": finding.real,
        "message": report.diagnosis.words,
        **numbers,
        **about,
        "facts": {
            each.what: {"found": each.found, "promise": each.promise, "detail": each.detail}
            for each in report.facts
        },
    }
