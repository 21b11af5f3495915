"""The report page of one run; complete without a script and without a network."""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections.abc import Mapping, Sequence

from tinker_recovery.costs import Prices
from tinker_recovery.journal.reading import EventView, RunView
from tinker_recovery.report.curve import loss_section
from tinker_recovery.report.figures import ReportFigures, figures_of
from tinker_recovery.report.html import Markup, joined, tag
from tinker_recovery.report.lineage import lineage
from tinker_recovery.report.looks import SCRIPT, STYLE
from tinker_recovery.report.tables import folded, table
from tinker_recovery.report.timeline import timeline_section
from tinker_recovery.report.tree import tree_section
from tinker_recovery.report.words import duration, event_in_words, moment, number, tokens, usd

_OPEN_EVENTS = 40
"""Events that are shown; older ones are folded."""

_TONES = {
    "finished": "good",
    "training": "good",
    "stalled": "wait",
    "recovering": "wait",
    "resuming": "wait",
    "stopped": "wait",
    "abandoned": "wait",
}


_ADVICE = {
    (True, True): "Run the same command again: it continues from the newest checkpoint.",
    (True, False): "No checkpoint of it is known here: the same command starts it over, unless the "
    "service has one.",
    (False, True): "It has no name=, so no command continues it: start another run with "
    "from_checkpoint= and the newest path below.",
    (False, False): "It has no name=, so no command continues it. No checkpoint of it is known "
    "here to start another run from.",
}
"""What to do about a dead run, by whether it is named, and has a checkpoint."""


def render(
    run: RunView,
    events: Sequence[EventView],
    *,
    now: float,
    prices: Mapping[str, Prices] | None = None,
) -> str:
    """A run as one page of HTML that loads nothing.

    Args:
        run: The run with its history, as ``journal.reading.read_run`` returns it.
        events: Its events, oldest first.
        now: When they were read, in seconds since the epoch.
        prices: What tokens cost; by default what the run's policy says.
    """
    segments = lineage(run)
    figures = figures_of(run, segments, prices)
    # If anything got past the escaping, it could still neither run nor contact another site.
    policy = (
        f"default-src 'none'; style-src '{_digest(STYLE)}'; script-src '{_digest(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{run.name}: report"),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag("a", "To the figures", href="#figures", class_="skip"),
        _header(run),
        tag(
            "main",
            _tiles(figures),
            _section("loss", "Loss", tag("figure", loss_section(run))),
            _section("incidents", "Incidents", tag("figure", timeline_section(run, segments))),
            _section("lineage", "Lineage", tag("figure", tree_section(run, segments))),
            _section("figures", "Figures", _figures(figures)),
            _section("events", "Events", _events(events, run.created)),
            tag("footer", f"Read from the journal at {moment(now)} by tinker-recovery report."),
        ),
        tag("script", Markup(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _digest(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _section(name: str, title: str, *content: object) -> Markup:
    heading = tag("h2", title, id=f"{name}-heading")
    return tag("section", heading, *content, id=name, aria_labelledby=f"{name}-heading")


def _header(run: RunView) -> Markup:
    state = run.display_state
    detail = run.detail
    if state == "dead":
        holder = f" ({run.holder})" if run.holder else ""
        stored = any(not each.gone for each in run.checkpoints)
        detail = f"The process that trained it has ended{holder}. {_ADVICE[run.named, stored]}"
    model = run.origin.get("base_model")
    return tag(
        "header",
        tag("h1", run.name, " ", tag("span", state, class_=f"state {_TONES.get(state, 'bad')}")),
        tag(
            "p",
            f"{model}, " if model else "",
            f"{moment(run.created)} to {moment(run.updated)}, at {run.service}, "
            f"lineage {run.lineage}",
            class_="about",
        ),
        tag("p", detail, class_="about") if detail else "",
    )


def _tiles(figures: ReportFigures) -> Markup:
    tiles = (
        ("steps", number(figures.steps)),
        ("recoveries", number(figures.recoveries)),
        ("steps done again", number(figures.replayed_steps)),
        ("time lost", duration(figures.lost_s)),
        ("goodput", _share(figures.goodput)),
        *([] if figures.usd is None else [("cost", usd(figures.usd))]),
    )
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles),
        class_="tiles",
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _median_and_longest(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:  # noqa: PLR2004 - one is its own median
        return ", ".join(map(duration, seconds)) or "-"
    return f"median {duration(statistics.median(seconds))}, longest {duration(max(seconds))}"


_SPENT = {
    "kept": "steps in the run's weights",
    "again": "steps done again",
    "no_step": "no progress before a fault or in an outage, attempts that did no step",
    "recoveries": "recoveries",
    "no_process": "no process, or its start",
}
"""What time is spent on, as :func:`~tinker_recovery.report.figures.time_spent` names it."""


def _figures(figures: ReportFigures) -> Markup:
    kept = figures.checkpoints - figures.checkpoints_deleted
    rows = [
        ("optimizer steps in the weights", number(figures.steps)),
        ("attempts at the loop", number(figures.attempts)),
        ("recovery attempts left", number(figures.attempts_left)),
        ("faults", number(figures.incidents)),
        ("recoveries", number(figures.recoveries)),
        ("from detection to hand-over", _median_and_longest(figures.handover_s)),
        ("steps done again", number(figures.replayed_steps)),
        ("time from the start to the newest sign of life", duration(figures.elapsed_s)),
        *((f"of it: {what}", duration(figures.time_spent_s[key])) for key, what in _SPENT.items()),
        ("time lost: no progress, recoveries, steps done again", duration(figures.lost_s)),
        ("goodput: the share of the time in steps of the run's weights", _share(figures.goodput)),
        ("tokens", tokens(figures.tokens)),
        ("tokens in steps done again", tokens(figures.tokens_replayed)),
        ("cost", usd(figures.usd, figures.unpriced)),
        ("cost of steps done again", usd(figures.usd_replayed)),
        ("cost of the canary", usd(figures.usd_checks)),
        ("checkpoints kept", number(kept)),
        ("checkpoints deleted", number(figures.checkpoints_deleted)),
    ]
    return table("Figures", ("what", "value"), rows, numeric=(1,), prose=True)


def _events(events: Sequence[EventView], since: float) -> Markup:
    if not events:
        return tag("p", "No events yet.")
    rows = [
        (
            moment(each.time, beside=since),
            event_in_words(each.name, each.message, each.fields),
            each.name,
        )
        for each in reversed(events)
    ]
    heads = ("time", "what happened", "event")
    newest = table("Events, newest first", heads, rows[:_OPEN_EVENTS], prose=True)
    if len(rows) <= _OPEN_EVENTS:
        return newest
    rest = rows[_OPEN_EVENTS:]
    return joined(
        newest, folded(f"{len(rest)} older", table("Older events", heads, rest, prose=True))
    )
