"""Errors cross process boundaries: pickled, copied, and raised in another process."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import pickle
import pkgutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from inspect import Parameter, isfunction, signature
from typing import NoReturn, get_type_hints

import anyio
import httpx
import pytest
import tinker

import tinker_recovery
from tinker_recovery.errors import (
    DeadlineExceeded,
    RecoveryExhausted,
    RunFailed,
    RunHeld,
    UsageError,
)
from tinker_recovery.supervision import SpecError
from tinker_recovery.supervision.errors import ErrorStandIn, PortableError


def _classes() -> Iterator[type[BaseException]]:
    for module in pkgutil.walk_packages(tinker_recovery.__path__, "tinker_recovery."):
        # A plugin that pytest imports by itself, to rewrite its assertions.
        if not module.name.endswith(("__main__", "testing.fixtures")):
            for each in vars(importlib.import_module(module.name)).values():
                if isinstance(each, type) and issubclass(each, BaseException):
                    yield each


CLASSES = sorted(
    {each for each in _classes() if each.__module__.startswith("tinker_recovery")},
    key=lambda each: (each.__module__, each.__qualname__),
)
"""Every class of exception in the package."""

TREES = [each for each in CLASSES if issubclass(each, PortableError)]

SAMPLES: dict[object, object] = {
    str: "a text",
    int: 7,
    bool: True,
    float: 2.5,
    object: ("a value", 3),
    BaseException: KeyError("the crash"),
    int | None: 503,
    str | None: "tinker://session:train:0/weights/x",
    Sequence[str]: ("one", "another"),
    Sequence[BaseException]: (ValueError("the first"), DeadlineExceeded("creating a client", 2.0)),
}
"""An argument for each annotation of a constructor's parameters."""

ROUNDS: dict[str, Callable[[BaseException], BaseException]] = {
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),  # noqa: S301 - our own bytes
    "pickle 2": lambda error: pickle.loads(pickle.dumps(error, 2)),  # noqa: S301 - our own bytes
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def made(kind: type[BaseException]) -> BaseException:
    """One of this class, with an argument for every parameter of its constructor."""
    if not isfunction(kind.__init__):
        return kind("what went wrong")
    hints = get_type_hints(kind.__init__)
    positional: list[object] = []
    named: dict[str, object] = {}
    for name, parameter in list(signature(kind.__init__).parameters.items())[1:]:
        if parameter.kind is Parameter.VAR_POSITIONAL:
            positional.append("what went wrong")
        elif parameter.kind is Parameter.KEYWORD_ONLY:
            named[name] = SAMPLES[hints[name]]
        else:
            positional.append(SAMPLES[hints[name]])
    return kind(*positional, **named)


def fail() -> NoReturn:
    raise LookupError("dealt with meanwhile")


def chained(error: BaseException) -> BaseException:
    """Raised from one error while another was dealt with, with two notes."""
    try:
        try:
            fail()
        except LookupError:
            raise error from UsageError("the cause")
    except type(error) as caught:
        caught.add_note("the first note")
        caught.add_note("the second note")
        return caught


def attributes(error: BaseException) -> dict[str, str]:
    """By name, as text: two exceptions are never equal."""
    return {name: repr(value) for name, value in vars(error).items() if name != "__notes__"}


@pytest.mark.parametrize("how", ROUNDS)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__qualname__)
def test_every_error_is_the_same_on_the_other_side(kind: type[BaseException], how: str) -> None:
    error = made(kind)
    came = ROUNDS[how](error)
    assert type(came) is kind
    assert came is not error
    assert (str(came), repr(came)) == (str(error), repr(error))
    assert attributes(came) == attributes(error)


@pytest.mark.parametrize("how", ROUNDS)
@pytest.mark.parametrize("kind", TREES, ids=lambda kind: kind.__qualname__)
def test_every_error_keeps_its_cause_its_context_and_its_notes(
    kind: type[BaseException], how: str
) -> None:
    came = ROUNDS[how](chained(made(kind)))
    assert isinstance(came.__cause__, UsageError)
    assert str(came.__cause__) == "the cause"
    assert isinstance(came.__context__, LookupError)
    assert came.__suppress_context__
    assert came.__notes__ == ["the first note", "the second note"]


def test_no_error_for_users_is_left_out_of_the_trees() -> None:
    public = [
        each
        for each in CLASSES
        if not each.__qualname__.startswith("_")
        # The local server's own, which never leave it.
        and not each.__module__.startswith("tinker_recovery.testing")
    ]
    assert set(public) == set(TREES)


def test_a_context_is_suppressed_on_the_other_side_only_if_it_was_before() -> None:
    def raised() -> BaseException:
        try:
            try:
                fail()
            except LookupError:
                raise UsageError("no")  # noqa: B904 - the context is what is looked at
        except UsageError as error:
            return error

    came = ROUNDS["pickle"](raised())
    assert (came.__cause__, came.__suppress_context__) == (None, False)
    assert "dealt with meanwhile" in "".join(traceback.format_exception(came))


def timed_out() -> tinker.APITimeoutError:
    """An error of the SDK's that cannot be unpickled: its constructor takes no message."""
    request = httpx.Request("POST", "http://127.0.0.1/api/v1/optim_step")
    error = tinker.APITimeoutError(request)
    error.__cause__ = httpx.ReadTimeout("no answer", request=request)
    error.add_note("while it was tried")
    return error


def exhausted() -> RecoveryExhausted:
    """As a recovery ends that met the SDK's errors."""
    return RecoveryExhausted(
        "given up", run="sft", errors=[DeadlineExceeded("creating a client", 2.0), timed_out()]
    )


@pytest.mark.parametrize("how", ["pickle", "pickle 2", "deepcopy"])
def test_an_error_that_cannot_be_pickled_is_replaced_by_its_type_and_text(how: str) -> None:
    with pytest.raises(TypeError, match="positional arguments"):
        ROUNDS[how](timed_out())
    came = ROUNDS[how](exhausted())
    assert isinstance(came, RecoveryExhausted)
    first, last = came.errors
    assert isinstance(first, DeadlineExceeded)
    assert last is came.__cause__
    assert isinstance(last, ErrorStandIn)
    assert str(last) == "APITimeoutError: Request timed out."
    assert last.__notes__ == ["while it was tried"]
    assert last.type_name == "tinker.APITimeoutError"
    assert isinstance(last.__cause__, httpx.ReadTimeout)
    shown = "".join(traceback.format_exception(came))
    assert "APITimeoutError: Request timed out." in shown


def test_a_copy_in_this_process_keeps_the_very_errors() -> None:
    error = exhausted()
    came = copy.copy(error)
    assert came.errors is error.errors
    assert came.__cause__ is error.__cause__


def test_a_value_that_cannot_be_pickled_becomes_its_repr() -> None:
    unpicklable = lambda: None  # noqa: E731 - a function without a place to import it from
    came = ROUNDS["pickle"](SpecError("start", unpicklable, "a coroutine function"))
    assert isinstance(came, SpecError)
    assert came.value == repr(unpicklable)


def test_an_error_whose_class_cannot_be_imported_is_replaced() -> None:
    class Local(UsageError):
        """Of a function."""

    came = ROUNDS["pickle"](RunFailed("over", run="sft", errors=[Local("no")]))
    assert isinstance(came, RunFailed)
    (error,) = came.errors
    assert str(error).endswith("Local: no")


def test_errors_that_lead_back_to_each_other_come_through() -> None:
    first, second = UsageError("first"), UsageError("second")
    first.__cause__, second.__cause__ = second, first
    came = ROUNDS["pickle"](first)
    assert came.__cause__ is not None
    assert came.__cause__.__cause__ is came
    grouped = UsageError("grouped")
    grouped.__context__ = ExceptionGroup("both", [grouped, ValueError("other")])
    came = ROUNDS["pickle"](grouped)
    assert str(came.__context__) == "ExceptionGroup: both (2 sub-exceptions)"


def test_a_long_chain_is_no_slower_than_it_is_long() -> None:
    error: BaseException = timed_out()
    for _ in range(40):
        error = RunFailed("over", run="sft", errors=[error])
    came: BaseException | None = ROUNDS["pickle"](error)
    for _ in range(40):
        assert isinstance(came, RunFailed)
        assert came.errors[-1] is came.__cause__
        came = came.__cause__
    assert str(came) == "APITimeoutError: Request timed out."


def fail_in_another_process(how: str) -> int:
    """For a worker of a pool."""
    if how == "held":
        raise RunHeld("it is held", run="sft", pid=7, host="here", since=1.0, expires=2.0)
    if how == "exhausted":
        raise exhausted()
    return 42


async def test_a_pool_of_processes_hands_an_error_over_and_works_on() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(RunHeld) as caught:
            await anyio.to_thread.run_sync(pool.submit(fail_in_another_process, "held").result)
        assert (caught.value.run, caught.value.pid) == ("sft", 7)
        with pytest.raises(RecoveryExhausted) as given_up:
            await anyio.to_thread.run_sync(pool.submit(fail_in_another_process, "exhausted").result)
        assert str(given_up.value.errors[-1]) == "APITimeoutError: Request timed out."
        assert "fail_in_another_process" in str(given_up.value.__cause__), "the pool's own cause"
        working = pool.submit(fail_in_another_process, "not")
        assert await anyio.to_thread.run_sync(working.result) == 42
