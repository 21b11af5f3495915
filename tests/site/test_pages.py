"""The pages say all that there is: each setting, error, command and public name."""

from __future__ import annotations

import importlib
import inspect
import re

import click
import pytest
import site_errors
import site_pages
import site_settings
from documents import ROOT
from site_docstrings import to_markdown

from tinker_recovery import policy_settings

DOCS = ROOT / "docs"


@pytest.mark.parametrize("model", site_settings.MODELS)
def test_each_setting_says_when_to_change_it_and_each_number_its_unit(model: str) -> None:
    fields = getattr(importlib.import_module(site_settings.MODELS[model]), model).model_fields
    written = site_settings.when_to_change()[model]
    assert list(written) == [name for name in fields if name in written], "in the model's order"
    assert set(fields) - set(written) == set(), "docs/when.toml has a line for each"
    without_unit = {
        name
        for name, field in fields.items()
        if site_settings.is_number(field) and not site_settings.unit_of(model, name)
    }
    assert without_unit <= {"backoff_jitter"}, "a share has none"


def test_a_setting_is_shown_with_default_limits_and_variable() -> None:
    page = site_settings.settings("RecoveryPolicy")
    assert "| [`max_wait_s`](#recoverypolicy.max_wait_s) | 86,400 s (1 day) |" in page
    assert "Default: 3 recovery attempts; allowed: a whole number, at least 1;" in page
    assert "`TINKER_RECOVERY_MAX_ATTEMPTS`" in page
    assert "Default: `None`; given in Python alone." in page, "on_failure"


def test_each_variable_of_ours_is_on_the_page_of_settings() -> None:
    page = (DOCS / "settings.md").read_text()
    named = {
        name
        for file in (ROOT / "tinker_recovery").rglob("*.py")
        for name in re.findall(r"\bTINKER_RECOVERY_[A-Z_]*[A-Z]", file.read_text())
    } | policy_settings._NO_SETTINGS
    settings = {each.variable for each in policy_settings.SETTINGS.values()}
    assert {name for name in named - settings if f"`{name}`" not in page} == set()


def test_each_error_has_its_meaning_its_remedy_and_its_texts() -> None:
    page = (DOCS / "errors.md").read_text()
    entries = dict(re.findall(r"^### (\w+)\b.*?\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(site_errors.public_errors()) == set(entries) - {"ValidationError"}
    for name, entry in entries.items():
        assert "**Means:** " in entry, name
        assert "**Do:** " in entry, name
        assert "<!-- generated: " in entry, name
    shown = site_pages.filled_in(page)
    assert "the loss of step {step} is {value}" in shown
    assert "its 1 texts" not in shown


def test_each_span_and_event_says_what_it_is() -> None:
    assert "| `tinker_recovery.step.replayed` | `{step}` | Optimizer steps" in site_pages.metrics(
        ""
    )
    for table in (site_pages.spans(""), site_pages.events("")):
        rows = [row.strip("|").split("|") for row in table.splitlines()[2:]]
        assert [row[0].strip() for row in rows if not row[-1].strip()] == []


def test_each_command_says_how_it_ends() -> None:
    without = [
        name
        for name, command in site_pages.commands()
        if not isinstance(command, click.Group) and not site_pages.exit_status(name)
    ]
    assert without == []


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("index", "tinker_recovery"),
        ("supervision", "tinker_recovery.supervision"),
        ("telemetry", "tinker_recovery.telemetry"),
        ("testing", "tinker_recovery.testing"),
        ("jobs", "tinker_recovery.jobs"),
    ],
)
def test_each_public_name_is_in_the_reference(page: str, module: str) -> None:
    text = site_pages.filled_in((DOCS / "api" / f"{page}.md").read_text())
    shown = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", text, re.MULTILINE)
    public = set(importlib.import_module(module).__all__) - {"__version__"}
    assert len(shown) == len(set(shown))
    assert public - set(shown) == set(site_pages.INTERNAL.get(module, ()))


def test_what_is_generated_is_not_kept_in_a_page_but_asked_for() -> None:
    asked = {
        found["kind"]
        for page in DOCS.rglob("*.md")
        for found in site_pages.MARKER.finditer(page.read_text())
    }
    assert asked == set(site_pages.GENERATORS)


def test_a_docstring_becomes_markdown() -> None:
    text = (
        "See :class:`~a.b.Name`.\n\n::\n\n    async with x:\n        ...\n\n"
        "====  ====\none   two\n====  ====\n1     2\n====  ===="
    )
    assert to_markdown(text).replace("\n\n\n", "\n\n").split("\n\n") == [
        'See <autoref optional identifier="a.b.Name"><code>Name</code></autoref>.',
        "```python\nasync with x:\n    ...\n```",
        "| one | two |\n| --- | --- |\n| 1 | 2 |\n",
    ]


def test_a_table_of_a_docstring_keeps_its_rows_where_cells_go_on_or_run_across() -> None:
    text = """
        ======  =====  =====
        exit    this   other
        ======  =====  =====
        first,  a      b
        second
        third   all-of-them-at once
        fourth  a      c and
                       on
        ======  =====  =====
        """
    assert [line for line in to_markdown(inspect.cleandoc(text)).splitlines() if line] == [
        "| exit | this | other |",
        "| --- | --- | --- |",
        "| first, second | a | b |",
        "| third | all-of-them-at once |  |",
        "| fourth | a | c and on |",
    ]
