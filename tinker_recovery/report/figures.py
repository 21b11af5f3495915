"""The figures of a run, from the journal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinker_recovery.costs import Prices, Usage, bill, usage_of
from tinker_recovery.journal.reading import IncidentView, RunView
from tinker_recovery.report.lineage import TreeSegment, lineage
from tinker_recovery.telemetry.figures import AttemptFigures, goodput
from tinker_recovery.telemetry.lost_time import Stretch, length, lost, union, within, without


@dataclass(frozen=True, slots=True)
class ReportFigures:
    """The figures of a run. Times are in seconds; None where nothing is known yet.

    Attributes:
        steps: Optimizer steps in its weights.
        attempts: Attempts at the loop.
        attempts_left: Recovery attempts left.
        incidents: Faults.
        recoveries: Faults it recovered from.
        replayed_steps: Steps that had to be done again.
        elapsed_s: From its start to its newest sign of life.
        recovering_s: From the detection of each fault to the hand-over of a new client, in all.
        replaying_s: Spent on the steps that had to be done again.
        lost_s: From the last progress before each fault until the loop had a client again, outages,
            and the training of steps done again: see :mod:`tinker_recovery.telemetry.lost_time`.
        goodput: The share of ``elapsed_s`` that went into steps in the run's weights: 0 to 1.
        time_spent_s: Each second of ``elapsed_s`` by what it went into: see :func:`time_spent`.
        handover_s: For each recovery, from the detection to the hand-over.
        checkpoints: Checkpoints stored, deleted ones included.
        checkpoints_deleted: The deleted ones.
        tokens: Tokens by kind and model, the run's own being empty, as counted.
        tokens_replayed: Those of the loop that went into steps done again.
        usd: What all of them cost by the table of prices; None without one.
        usd_replayed: What those done again cost.
        usd_checks: What the canary's cost.
        unpriced: Models with tokens, and without a price.
    """

    steps: int
    attempts: int
    attempts_left: int | None
    incidents: int
    recoveries: int
    replayed_steps: int
    elapsed_s: float
    recovering_s: float
    replaying_s: float
    lost_s: float
    goodput: float | None
    time_spent_s: Mapping[str, float]
    handover_s: tuple[float, ...]
    checkpoints: int
    checkpoints_deleted: int
    tokens: Mapping[str, Mapping[str, int]]
    tokens_replayed: Mapping[str, Mapping[str, int]]
    usd: float | None
    usd_replayed: float | None
    usd_checks: float | None
    unpriced: tuple[str, ...]


def replayed(incident: IncidentView) -> int:
    """Steps that had to be done again after a fault; 0 if there was no recovery."""
    if incident.outcome != "recovered" or incident.to_step is None:
        return 0
    return max(0, incident.step - incident.to_step)


def usage(run: RunView, segments: Sequence[TreeSegment]) -> Usage:
    """The tokens of a run, of which those beyond the last save kept of an attempt were replayed."""
    ids = {each.number: each.attempt for each in run.attempts}
    counted = [(each, run.tokens.get(ids[each.number])) for each in segments]
    return usage_of(
        (tokens.all, tokens.all if each is segments[-1] else tokens.up_to(each.kept_to))
        for each, tokens in counted
        if tokens is not None
    )


def time_spent(run: RunView, segments: Sequence[TreeSegment]) -> dict[str, float]:
    """Every second from a run's start to its newest sign of life, by what it went into.

    ``kept`` are the steps in the run's weights, ``again`` those that had to be done again,
    ``no_step`` attempts that did none, and times in which one made no progress, before a fault or
    in an outage, ``recoveries`` from the detection of a fault to a new client, and ``no_process``
    what is left: no process trained the run, or it was starting.

    A moment at which a recovery is under way counts as that, whatever an attempt does meanwhile.
    """
    end = max(run.created, run.updated)
    recovering = union(_recoveries(run), end)
    busy = dict.fromkeys(("kept", "again", "no_step"), 0.0)
    covered = list(recovering)
    for each in segments:
        own = without(each.started, min(each.ended, end), covered)
        covered = union([*covered, *own], end)
        silent_s = sum(length(within(run.silences, *part)) for part in own)
        trained_s = length(own) - silent_s
        busy["no_step"] += silent_s
        done, kept = each.end_step - each.start_step, each.kept_to - each.start_step
        if not done:
            busy["no_step"] += trained_s
            continue
        busy["kept"] += trained_s * kept / done
        busy["again"] += trained_s * (done - kept) / done
    return {
        **busy,
        "recoveries": length(recovering),
        "no_process": end - run.created - length(covered),
    }


def _recoveries(run: RunView) -> list[Stretch]:
    end = max(run.created, run.updated)
    return [(each.started, end if each.ended is None else each.ended) for each in run.incidents]


def trained(run: RunView, segment: TreeSegment) -> list[Stretch]:
    """When a segment trained: not while it made no progress."""
    return without(segment.started, segment.ended, run.silences)


def figures_of(
    run: RunView,
    segments: Sequence[TreeSegment] | None = None,
    prices: Mapping[str, Prices] | None = None,
) -> ReportFigures:
    """The figures of a run with its history, as ``journal.reading.read_run`` returns it.

    Args:
        run: The run.
        segments: Its :func:`~tinker_recovery.report.lineage.lineage`, if known already.
        prices: What tokens cost; by default what the run's policy says.
    """
    segments = lineage(run) if segments is None else segments
    stretches = [
        AttemptFigures(
            start_step=each.start_step,
            done=each.end_step - each.start_step,
            kept_to=math.inf if each.kept_to == each.end_step else each.kept_to,
            busy_s=length(trained(run, each)),
        )
        for each in segments
    ]
    elapsed_s = max(0.0, run.updated - run.created)
    good = goodput(stretches, elapsed_s)
    handover_s = tuple(
        incident.ended - incident.started
        for incident in run.incidents
        if incident.outcome == "recovered" and incident.ended is not None
    )
    spent, prices = usage(run, segments), run.prices if prices is None else prices
    model = str(run.origin.get("base_model") or "")
    parts = spent.tokens, spent.replayed, spent.tokens.only("checked")
    bills = [None if prices is None else bill(each, prices, model) for each in parts]
    usd, usd_replayed, usd_checks = (None if each is None else each.usd for each in bills)
    return ReportFigures(
        steps=run.step,
        attempts=len(run.attempts),
        attempts_left=run.attempts_left,
        incidents=len(run.incidents),
        recoveries=len(handover_s),
        replayed_steps=sum(each.done - each.kept for each in stretches),
        elapsed_s=elapsed_s,
        recovering_s=sum(
            max(0.0, (run.updated if each.ended is None else each.ended) - each.started)
            for each in run.incidents
        ),
        replaying_s=sum(each.busy_s - each.useful_s for each in stretches if each.done),
        lost_s=lost([*_recoveries(run), *run.silences], stretches),
        goodput=good,
        time_spent_s=time_spent(run, segments),
        handover_s=handover_s,
        checkpoints=len(run.checkpoints),
        checkpoints_deleted=sum(each.gone for each in run.checkpoints),
        tokens=spent.tokens.to_json(),
        tokens_replayed=spent.replayed.to_json(),
        usd=usd,
        usd_replayed=usd_replayed,
        usd_checks=usd_checks,
        unpriced=() if bills[0] is None else bills[0].unpriced,
    )
