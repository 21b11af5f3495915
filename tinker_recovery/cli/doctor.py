"""``tinker-recovery doctor``: does the configured service really restore the optimizer?"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tinker_recovery.doctor import ExamPlan, Report

_UNKNOWN, _INTERRUPTED = 3, 130
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
    help="Seconds for the experiment; each step of the clean-up may take 10 s more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on the last line.")
def command(base_model: str, rank: int, steps: int, timeout_s: float, *, as_json: bool) -> None:
    r"""Find out whether the service really restores the optimizer.

    A restore "with optimizer" that leaves the optimizer cold raises nothing: the weights are right,
    but every later update differs. So this trains a few steps, saves, and takes the same next step
    in three ways: live, resumed with optimizer, and resumed with weights only. Logprobs of a fixed
    batch before and after that step show which of them agree. The service's own noise is measured
    as well.

    The service is the one that TINKER_BASE_URL and TINKER_API_KEY name. Costs four sessions and a
    few hundred tokens, three times that if the first result is inconclusive. The checkpoint is
    deleted and the sessions are finished at the end, also after Ctrl-C.

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
        _leave(_INTERRUPTED, "Interrupted.", {"error": "interrupted"}, as_json)
    except Exception as error:  # noqa: BLE001 - any error means that the question is still open
        why = redact(str(error))
        _leave(_UNKNOWN, f"No result: {why}", {"error": why}, as_json)
    else:
        finding = report.diagnosis.finding
        _leave(_STATUS[finding.real], _as_text(report), _as_json(report), as_json)


def _leave(status: int, text: str, facts: dict[str, object], as_json: bool) -> None:  # noqa: FBT001 - the user's own switch
    click.echo(json.dumps(facts) if as_json else text)
    if any(not thread.daemon for thread in threading.enumerate()[1:]):
        # The SDK is still trying to reach a service that is gone, in a thread that cannot be
        # stopped, and a normal exit would wait minutes for it. Everything of ours is closed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


async def _examine(plan: ExamPlan) -> Report:
    from tinker_recovery.doctor import examine
    from tinker_recovery.service import StatusReader, TinkerBackend

    began = time.monotonic()

    def progress(phase: str) -> None:
        click.echo(f"[{time.monotonic() - began:6.1f} s] {phase}", err=True)

    backend = TinkerBackend()
    async with StatusReader(await backend.endpoint()) as reader:
        return await examine(plan, backend=backend, reader=reader, progress=progress)


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
        f"{report.base_url}, tinker {report.sdk}, {report.base_model}, rank {report.rank}, "
        f"{report.steps} steps at {report.learning_rate:g}"
    )
    return "\n".join([found.words, "", f"Logprobs at {about}:", *lines])


def _as_json(report: Report) -> dict[str, object]:
    """Infinite distances, which JSON cannot express, are null."""
    found = asdict(report.diagnosis)
    finding = report.diagnosis.finding
    numbers = {
        name: value if value < float("inf") else None
        for name, value in found.items()
        if isinstance(value, float)
    }
    about = {name: value for name, value in asdict(report).items() if name != "diagnosis"}
    return {
        "finding": finding.value,
        "real": finding.real,
        "message": report.diagnosis.words,
        **numbers,
        **about,
    }
