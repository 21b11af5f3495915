"""What a job is: a function by its import path, and arguments that are JSON."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pydantic
from pydantic import BaseModel, TypeAdapter
from tinker import types

from tinker_recovery.errors import UsageError
from tinker_recovery.fields import Frozen
from tinker_recovery.jobs.retry import RetryPolicy
from tinker_recovery.run.options import plan_start

_NOT_JSON = ("adopt", "adopt_service", "start")
_OURS = ("name", "on_lease", "job")


class JobSpec(Frozen):
    """A job as it is stored; two submissions are the same if these are equal.

    Attributes:
        name: The job's id, and its run's name.
        train: The function, ``"module:name"``.
        start: How the run starts: arguments of ``Supervisor.run``, as JSON.
        args: Further arguments of ``train``, as JSON.
        retry: When it is tried again.
    """

    name: str
    train: str
    start: dict[str, Any]
    args: dict[str, Any]
    retry: RetryPolicy = RetryPolicy()

    @property
    def base_model(self) -> str:
        """What it is trained on; empty if it does not say."""
        return str(self.start.get("base_model", ""))

    def options(self) -> dict[str, Any]:
        """The arguments of ``Supervisor.run``."""
        options = dict(self.start)
        if "optimizer" in options:
            options["optimizer"] = _OPTIMIZER.validate_python(options["optimizer"])
        return options

    def loop(self) -> Callable[..., Any]:
        """The function, imported, with its arguments: it takes an ``Attempt``.

        Raises:
            UsageError: There is no such function here, or it does not take these arguments.
        """
        train = _found(self.train)
        try:
            inspect.signature(train).bind(None, **self.args)
        except TypeError as error:
            raise UsageError(
                f"job {self.name!r}: {self.train} does not take its arguments "
                f"{sorted(self.args)}: {error}"
            ) from None
        return functools.partial(train, **_as_hinted(train, self.args))


_OPTIMIZER: TypeAdapter[Any] = TypeAdapter(types.OptimizerConfig)


def job_spec(
    train: Callable[..., Any] | str,
    name: str,
    retry: RetryPolicy,
    args: Mapping[str, Any],
    start: Mapping[str, Any],
) -> JobSpec:
    """Check a submission, before anything happens.

    Raises:
        UsageError: The function has no import path, an argument is not JSON, or the run's arguments
            do not go together.
    """
    for key in (*_NOT_JSON, *_OURS):
        if key in start:
            why = "cannot be stored as JSON" if key in _NOT_JSON else "is decided by the job"
            raise UsageError(f"{key}= is not allowed in a job: it {why}")
    if not isinstance(name, str):
        raise UsageError(f"name={name!r} is not allowed: a text that is not empty")
    plan_start({**start, "name": name}, restore_optimizer=True)  # type: ignore[typeddict-item]  # it refuses what is unknown
    spec = JobSpec(
        name=name,
        train=train if isinstance(train, str) else import_path(train),
        start={key: _as_json(value, key) for key, value in start.items()},
        args={key: _as_json(value, f"args[{key!r}]") for key, value in args.items()},
        retry=retry,
    )
    if not isinstance(train, str):
        spec.loop()
    elif ":" not in train:
        raise UsageError(f"train={train!r} is not allowed: a function, or its path 'module:name'")
    return spec


def check_same(stored: JobSpec, given: JobSpec) -> None:
    """Refuse to submit a job again with other arguments.

    Raises:
        UsageError: They differ; names the argument and both values.
    """
    for field in JobSpec.model_fields:
        before, now = getattr(stored, field), getattr(given, field)
        if before != now:
            raise UsageError(
                f"{field}={_shown(now)} is not how job {given.name!r} was submitted, which is "
                f"{_shown(before)}: submit it with the same arguments, or choose another name"
            )


def import_path(train: Callable[..., Any]) -> str:
    """The path by which a worker finds a function, ``"module:name"``.

    What a script defines has the path that other scripts import it by: the script's own name.

    Raises:
        UsageError: It cannot be imported: a lambda, a function inside another, a bound method.
    """
    module, name = getattr(train, "__module__", None), getattr(train, "__qualname__", None)
    if module == "__main__":
        module = _script()
    if module and name and "<" not in name:
        path = f"{module}:{name}"
        try:
            if _found(path) is train:
                return path
        except UsageError:
            pass
    raise UsageError(
        f"train={train!r} is not allowed in a job: a worker has to import it, so define it with "
        "`def` at the top of a module, and pass what it needs in args="
    )


def _script() -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return "__main__" if file is None else Path(file).stem


def _found(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        # A script is not run a second time.
        found: Any = (
            sys.modules["__main__"] if module == _script() else importlib.import_module(module)
        )
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"there is no {path} to train with here ({error}): start the worker where its module "
            "can be imported, `tinker-recovery jobs work MODULE`"
        ) from error
    if not callable(found):
        raise UsageError(f"{path} is no function")
    return found  # type: ignore[no-any-return]  # whatever was found, it is callable


def _as_json(value: Any, where: str) -> Any:
    _check_keys(value, where)
    try:
        plain = pydantic.TypeAdapter(Any).dump_python(value, mode="json")
        return json.loads(json.dumps(plain, allow_nan=False))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{where}={value!r} is not allowed: it has to be JSON, or a pydantic model ({error})"
        ) from error


def _check_keys(value: Any, where: str) -> None:
    """Refuse keys that JSON would make texts: the function would find nothing under its own."""
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = value.values()
        for key in value:
            if not isinstance(key, str):
                raise UsageError(
                    f"key {key!r} in {where} is not allowed: JSON has keys that are a text, so "
                    f"{str(key)!r}, and make it what it was in the function; or give pairs, as "
                    "[[0, 0.5], [100, 0.1]]"
                )
    elif isinstance(value, (list, tuple)):
        inner = value
    for each in inner:
        _check_keys(each, where)


def _as_hinted(train: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, each as the pydantic model that the function's hint names, if it does."""
    try:
        hints = get_type_hints(inspect.unwrap(train))
    except (NameError, TypeError):
        hints = {}

    def hinted(key: str, value: Any) -> Any:
        hint = hints.get(key)
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            return hint.model_validate(value)
        return value

    return {key: hinted(key, value) for key, value in args.items()}


def _shown(value: object) -> str:
    return repr(value.model_dump() if isinstance(value, BaseModel) else value)
