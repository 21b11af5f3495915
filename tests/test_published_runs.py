"""What a Publisher is told of a run, and what retention asks of it: with both made up."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tinker_recovery.run import publishing
from tinker_recovery.run.publishing import PublishedView, Publishing


def made(**facts: Any) -> Any:
    """A run, as far as is published of it."""
    return SimpleNamespace(
        **{
            "name": "sft",
            "lineage": "lineage",
            "guard": object(),
            "segments": [object()],
            "checkpoints": object(),
            "weights": SimpleNamespace(base_model=None),
            "origin": SimpleNamespace(base_model="asked for"),
            "recovering": False,
            "ended": False,
            "current": SimpleNamespace(finished=True),
            "history": SimpleNamespace(saved={("a", 2): {"loss": 0.5}}),
            "recoveries": [object(), object()],
            **facts,
        }
    )


def test_a_run_is_published_as_what_it_is() -> None:
    run = made()
    view = PublishedView(run)
    assert (view.name, view.lineage, view.guard) == ("sft", "lineage", run.guard)
    assert (view.segments, view.checkpoints) == (run.segments, run.checkpoints)
    assert (view.saved_metrics, view.recovered) == ({("a", 2): {"loss": 0.5}}, 2)


@pytest.mark.parametrize(
    ("of_weights", "origin", "known"),
    [
        ("read", SimpleNamespace(base_model="asked for"), "read"),
        (None, SimpleNamespace(base_model="asked for"), "asked for"),
        ("", SimpleNamespace(base_model="asked for"), "asked for"),
        (None, SimpleNamespace(path="tinker://a/weights/b"), None),
        (None, None, None),
    ],
)
def test_what_it_trains_on_is_read_of_its_weights_or_as_it_was_asked_for(
    of_weights: str | None, origin: object, known: str | None
) -> None:
    run = made(weights=SimpleNamespace(base_model=of_weights), origin=origin)
    assert PublishedView(run).base_model == known


@pytest.mark.parametrize("recovering", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_a_run_that_is_over_is_recovered_no_more(*, ended: bool, recovering: bool) -> None:
    view = PublishedView(made(ended=ended, recovering=recovering))
    assert (view.over, view.recovering) == (ended, recovering and not ended)


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("came_to_its_end", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_ended_by_an_error_or_had_no_attempt_has_not_finished(
    *, ended: bool, begun: bool, came_to_its_end: bool
) -> None:
    current = SimpleNamespace(finished=came_to_its_end) if begun else None
    view = PublishedView(made(ended=ended, current=current))
    assert view.finished == (ended and begun and came_to_its_end)


async def test_retention_asks_the_publisher_about_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[object, ...]] = []

    def noting(what: str) -> Callable[[PublishedView], dict[str, str]]:
        def note(view: PublishedView) -> dict[str, str]:
            log.append((what, view.name))
            return {"path": "it is to be published"}

        return note

    async def let_go(view: PublishedView) -> None:
        log.append(("let go", view.name))

    publisher = SimpleNamespace(
        children=object(),
        settle=object(),
        aclose=object(),
        ask=noting("ask"),
        keeps=noting("keeps"),
        let_go=let_go,
    )
    monkeypatch.setattr(publishing, "Publisher", {"collaborators": publisher}.__getitem__)
    of: Any = "collaborators"
    asked, run = Publishing(of), made()
    assert asked.children is publisher.children
    assert asked.settle is publisher.settle
    assert asked.aclose is publisher.aclose
    asked.ask(run)
    await asked.let_go(run)
    assert asked.keeps(run) == {"path": "it is to be published"}
    assert log == [("ask", "sft"), ("let go", "sft"), ("keeps", "sft")]
