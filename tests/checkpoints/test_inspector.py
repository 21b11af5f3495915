"""What a refusal to say what a checkpoint's weights are means: the Inspector's one table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made import NOW, listed, path
from pydantic import SecretStr
from tinker import types

from tinker_recovery import StatusError, StatusRefused, StatusUnavailable
from tinker_recovery.checkpoints import Finding, Listed, WeightsFacts
from tinker_recovery.checkpoints.validation import EXPIRY_MARGIN
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.recovery.inspector import Inspector
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service.checkpoint_calls import CheckpointCalls

RUN = WeightsFacts("m", 8)
ABOUT_THE_CALLER = (401, 402, 403)
NO_SUCH_CALL = (405, 501)
LATER = (408, 409, 425, 429, 500, 502, 503, 504)


class _Refuses(CheckpointCalls):
    """A service that answers weights_info with one error."""

    def __init__(self, error: StatusError) -> None:
        self._error = error

    async def weights_info(self, path: str) -> types.WeightsInfoResponse:
        del path
        raise self._error


@asynccontextmanager
async def _inspector(error: StatusError) -> AsyncIterator[Inspector]:
    endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))
    async with StatusReader(endpoint, wall=NOW.timestamp) as reader:
        inspector = Inspector(reader)
        inspector._calls = _Refuses(error)
        yield inspector


def _ask(error: StatusError, *, relied_on: bool) -> Finding | None:
    async def ask() -> Finding | None:
        async with _inspector(error) as inspector:
            return await inspector.weights(path("a", 5), RUN, relied_on=relied_on)

    return anyio.run(ask)


@given(status=st.none() | st.integers(400, 499).filter(lambda code: code not in LATER))
def test_a_refusal_is_no_objection_to_a_restore(status: int | None) -> None:
    assert _ask(StatusRefused("no", status_code=status), relied_on=False) is None


@given(status=st.none() | st.integers(200, 499).filter(lambda code: code not in LATER))
@example(status=401)
@example(status=402)
@example(status=403)
@example(status=404)
@example(status=405)
@example(status=406)
@example(status=400)
def test_where_others_are_deleted_a_refusal_counts_by_what_it_is_about(status: int | None) -> None:
    error = StatusRefused("no", status_code=status)
    if status in ABOUT_THE_CALLER:
        with pytest.raises(StatusRefused):
            _ask(error, relied_on=True)
        return
    finding = _ask(error, relied_on=True)
    assert (finding is None) == (status in NO_SUCH_CALL)
    assert finding is None or not finding.ok


@pytest.mark.parametrize("relied_on", [False, True])
def test_a_call_that_is_not_implemented_is_no_outage(*, relied_on: bool) -> None:
    assert _ask(StatusUnavailable("no", status_code=501), relied_on=relied_on) is None


@given(status=st.none() | st.sampled_from(LATER), relied_on=st.booleans())
def test_no_answer_says_nothing_and_is_raised(status: int | None, *, relied_on: bool) -> None:
    with pytest.raises(StatusUnavailable):
        _ask(StatusUnavailable("later", status_code=status), relied_on=relied_on)


def _objection(checkpoint: Listed, known: CheckpointState, *, relied_on: bool) -> str | None:
    async def ask() -> str | None:
        async with _inspector(StatusUnavailable("asked all the same")) as inspector:
            return await inspector.objection(checkpoint, known, RUN, relied_on=relied_on)

    return anyio.run(ask)


@pytest.mark.parametrize("relied_on", [False, True])
def test_what_is_known_to_be_unusable_costs_no_request(*, relied_on: bool) -> None:
    known = CheckpointState("r")
    known.being_deleted[path("a", 1)] = "its deletion was begun"
    known.bad[path("a", 2)] = "wrong weights"
    known.sizes[path("a", 3)] = 11
    lasting_s = EXPIRY_MARGIN.total_seconds()
    for checkpoint, reason in (
        (listed(1), "its deletion was begun"),
        (listed(2), "wrong weights"),
        (listed(3), "11 are on record"),
        (listed(4, size_bytes=0), "0 bytes"),
        (listed(5, lineage=""), "lineage is empty"),
        (listed(6, expires_in_s=lasting_s), "expires"),
    ):
        assert reason in str(_objection(checkpoint, known, relied_on=relied_on))
    with pytest.raises(StatusUnavailable, match="asked all the same"):
        _objection(listed(6, expires_in_s=lasting_s + 1), known, relied_on=relied_on)


def test_where_nothing_is_known_of_the_run_its_weights_are_asked_about_only_if_relied_on() -> None:
    async def ask(**given: bool) -> Finding | None:
        async with _inspector(StatusUnavailable("asked")) as inspector:
            return await inspector.weights(path("a", 5), WeightsFacts(), **given)

    assert anyio.run(ask) is None
    with pytest.raises(StatusUnavailable, match="asked"):
        anyio.run(lambda: ask(relied_on=True))


def test_nothing_is_relied_on_unless_that_is_said() -> None:
    async def ask() -> list[object]:
        async with _inspector(StatusRefused("no", status_code=401)) as inspector:
            known = CheckpointState("r")
            return [
                await inspector.weights(path("a", 5), RUN),
                await inspector.objection(listed(5), known, RUN),
            ]

    assert anyio.run(ask) == [None, None]
