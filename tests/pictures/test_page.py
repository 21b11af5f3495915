"""The page that ``report`` writes: what is in it, and that nothing in it can do anything."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from poisoned_run import NAME, STEPS, read_back
from two_hundred import leave_a_long_run

from tinker_recovery.cli import main
from tinker_recovery.journal.reading import EventView, RunView, read_run
from tinker_recovery.report import render
from tinker_recovery.report.html import tag, text
from tinker_recovery.telemetry.text import as_text

SECRETS = (
    "tml-averysecretkey",
    "https://store.example/x?X-Amz-Signature=deadbeef",
    "Bearer abcdefgh",
)


class _Page(HTMLParser):
    """What a browser would see: elements with attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "every element is closed where it was opened"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture
def run(written: Path) -> RunView:
    return read_back(written)[0]


@pytest.fixture
def events(written: Path) -> list[EventView]:
    return read_back(written)[1]


@pytest.fixture
def page(run: RunView, events: list[EventView]) -> _Page:
    return _Page(render(run, events, now=run.updated))


def test_the_page_shows_each_recovery_each_replay_and_each_branch(
    page: _Page, run: RunView
) -> None:
    assert page.open == []
    recovered = [each for each in run.incidents if each.outcome == "recovered"]
    assert len(recovered) == 2
    kinds = [each.get("class") or "" for _, each in page.elements]
    assert kinds.count("replay") == 2, "a stretch done again for each recovery"
    assert kinds.count("recovery") == 2, "and its time"
    assert kinds.count("branch lost") == 2, "and what the run abandoned"
    circles = [kind for kind in kinds if kind.startswith("saved ")]
    assert len(circles) == len(run.checkpoints)
    assert sum("source" in kind for kind in circles) == 2
    words = " ".join(page.words)
    for incident in recovered:
        assert incident.kind in words
        assert f"steps {incident.to_step} to {incident.step} were done again" in words


def test_checkpoints_that_are_deleted_are_dimmed_and_counted(
    run: RunView, events: list[EventView]
) -> None:
    checkpoints = tuple(replace(each, gone=each.step == 5) for each in run.checkpoints)
    page = _Page(render(replace(run, checkpoints=checkpoints), events, now=0))
    kinds = [(each.get("class") or "").split() for _, each in page.elements]
    assert sum({"saved", "gone"} <= set(each) for each in kinds) == 1
    assert sum({"save", "gone"} <= set(each) for each in kinds) == 1
    at = page.words.index("checkpoints deleted")
    assert page.words[at + 1] == "1"


def test_a_run_called_script_is_text_and_no_script(page: _Page) -> None:
    assert NAME in [each.strip() for each in page.words]
    (script,) = page.all("script")
    assert script == {}
    assert page.words.count("alert('sft')") == 0


def test_the_page_loads_nothing_and_lets_nothing_run_but_its_own_script(page: _Page) -> None:
    for _, attributes in page.elements:
        assert not {"src", "srcset", "action", "style"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    (policy,) = (
        each["content"] for each in page.all("meta") if "content-security" in str(each).lower()
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_every_chart_has_a_name_and_a_description_that_are_there(page: _Page) -> None:
    ids = {each["id"] for _, each in page.elements if each.get("id")}
    charts = [each for each in page.all("svg") if each.get("role") == "img"]
    assert len(charts) == 3
    for each in charts:
        named = (each["aria-labelledby"] or "").split()
        assert len(named) == 2
        assert set(named) <= ids
    assert len(page.all("table")) >= 6, "and tables show the same"


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_of_a_message_or_a_name_is_in_the_page(
    secret: str, run: RunView, events: list[EventView]
) -> None:
    revealing = [replace(each, message=f"it said {secret}") for each in events]
    named = replace(run, name=f"a {secret}", detail=secret, service=f"http://x/{secret}")
    page = render(named, revealing, now=0)
    assert "***" in page
    for hidden in ("averysecretkey", "deadbeef", "abcdefgh"):
        assert hidden not in page


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_any_text_is_only_text(words: str) -> None:
    page = _Page(tag("p", words, title=words))
    assert [name for name, _ in page.elements] == ["p"]
    assert "<" not in text(words)
    # Control characters as their escapes; the rest is unchanged.
    shown = "".join(page.words)
    assert shown == as_text(words.replace("\n", " ").replace("\t", " ")) or "***" in shown
    assert all(each.isprintable() for each in shown)


def test_runs_without_losses_attempts_or_events_have_a_page_too(run: RunView) -> None:
    empty = replace(run, attempts=(), incidents=(), checkpoints=(), progress=())
    page = _Page(render(empty, [], now=0))
    words = " ".join(page.words)
    assert "attempt.report(loss=...)" in words
    assert "Nothing was trained yet." in words
    one = replace(run, progress=run.progress[:1], updated=run.created)
    assert _Page(render(one, [], now=0)).open == []


def test_a_run_whose_process_was_killed_says_what_to_do(run: RunView) -> None:
    words = " ".join(_Page(render(replace(run, state="training"), [], now=0)).words)
    assert "dead" in words
    assert "Run the same command again" in words


@pytest.mark.parametrize("named", [True, False])
def test_one_that_was_killed_before_its_first_save_is_not_said_to_continue_from_one(
    run: RunView, *, named: bool
) -> None:
    gone = tuple(replace(each, gone=True) for each in run.checkpoints)
    for stored in ((), gone):
        dead = replace(run, state="training", checkpoints=stored, named=named)
        words = " ".join(_Page(render(dead, [], now=0)).words)
        assert "continues from the newest checkpoint" not in words
        assert "the newest path below" not in words
        assert "No checkpoint of it is known here" in words


def test_report_writes_the_page_and_prints_the_figures(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "a page.html"
    arguments = ["report", NAME, "--journal", str(written), "-o", str(out)]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["run"] == NAME
    assert said["report"] == str(out)
    assert (said["steps"], said["recoveries"], said["attempts"]) == (STEPS, 2, 3)
    assert said["replayed_steps"] > 0
    assert 0 < said["goodput"] < 1
    assert said["checkpoints"] >= 4
    assert len(said["handover_s"]) == 2
    assert re.match(r"<!DOCTYPE html>\n<html lang=\"en\">", out.read_text())
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == [out.name]


def test_report_says_which_runs_there_are_if_it_is_asked_for_another(
    written: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    journal, nowhere = ["--journal", str(written)], str(tmp_path / "no" / "x")
    for status, arguments, said in (
        (1, ["sft", *journal, "-o", str(out)], "alert('sft')"),
        (1, [NAME, "--service", "http://another", *journal, "-o", str(out)], "there is no run"),
        (3, ["sft", "--journal", nowhere, "-o", str(out)], "there is no journal at"),
        (3, ["sft", "-o", str(out)], "TINKER_RECOVERY_STATE_DIR"),
        (3, [NAME, *journal, "-o", nowhere], "choose another -o"),
    ):
        done = CliRunner().invoke(main, ["report", *arguments])
        assert done.exit_code == status, done.output
        assert said in done.stderr
        assert not out.exists()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    run = read_run(leave_a_long_run(tmp_path_factory.mktemp("long")), "long")
    assert run is not None
    return run


def test_what_recoveries_discarded_is_drawn_a_piece_of_each_attempt(
    page: _Page, run: RunView
) -> None:
    assert {each.step for each in run.discarded} >= {5, 10}
    assert [each.step for each in run.progress] == list(range(STEPS)), "the branch that counts"
    pieces = [each["points"] for each in page.all("polyline") if each.get("class") == "before"]
    assert len(pieces) == 2
    assert "what a recovery discarded" in " ".join(page.words)
    before = _Page(render(replace(run, discarded=()), [], now=0))
    assert "what a recovery discarded" not in " ".join(before.words)


def test_many_faults_are_marked_together_and_a_spike_does_not_flatten_the_rest(
    long: RunView,
) -> None:
    page = _Page(render(long, [], now=long.updated))
    words = " ".join(page.words)
    assert "6-12" in words
    for number in range(1, 21):
        assert re.search(rf"\b{number}: \w+ at step", words), "each is in the words of a mark"
    scales = [each for each in page.all("input") if each.get("name") == "scale"]
    assert [each["id"] for each in scales] == ["scale-usual", "scale-whole", "scale-log"]
    assert [("checked" in each) for each in scales] == [True, False, False]
    assert "1 value is above 3." in words
    assert "Of 5,000 steps the loss of 1,6" in words


def test_twenty_recoveries_are_summed_up_and_times_have_their_zone(long: RunView) -> None:
    words = " ".join(_Page(render(long, [], now=long.updated)).words)
    assert re.search(r"from detection to hand-over median \d+ s, longest 1 min \d+ s", words)
    assert re.search(r"\d\d:\d\d:\d\d[+-]\d\d:\d\d to 20", words)


def test_on_a_narrow_page_each_value_has_its_heading(page: _Page) -> None:
    cells = [each for name, each in page.elements if name == "td"]
    assert cells
    assert all(each.get("data-head") for each in cells)
