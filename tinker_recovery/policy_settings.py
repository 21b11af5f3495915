"""Settings: a policy from what stands in a file, in the environment and on the command line.

A program's own word comes first, then a flag's, then a variable's, then the file's, then the
default. The decision is :func:`resolve`, which is pure; :func:`find_table` reads the file.

============  ==================================================================================
flag          ``--set checkpoints.save_every=50``, and the arguments of
              :func:`policy_from_settings`
variable      ``TINKER_RECOVERY_CHECKPOINTS_SAVE_EVERY=50``
file          ``save_every = 50`` in ``[tool.tinker_recovery.checkpoints]`` of the nearest
              ``pyproject.toml``, from the working directory upwards; or in ``[checkpoints]`` of the
              TOML file that ``TINKER_RECOVERY_CONFIG`` or ``--config`` names
============  ==================================================================================

What can be written as text is a setting: numbers, words, true and false, ``none``, and a list of
steps (in a variable: ``10,20``). Callables and the canary are for a program to give. A name that is
not known is refused like a bad value: a typo would set nothing, and nobody would know.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError

from tinker_recovery.errors import UsageError
from tinker_recovery.policy import CheckpointPolicy, RecoveryPolicy

PREFIX = "TINKER_RECOVERY_"
CONFIG = f"{PREFIX}CONFIG"
"""The variable that names a file."""

_NO_SETTINGS = frozenset({CONFIG, f"{PREFIX}STATE_DIR", f"{PREFIX}FINISHED_FILE"})
"""Variables of ours that are not about the policy."""

_ONLY_IN_PYTHON = frozenset(
    {"retryable_errors", "on_skip", "on_recovery", "on_failure", "canary", "checkpoints.keep_if"}
)
_TABLE = "checkpoints"
_PYPROJECT = "pyproject.toml"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from.

    Attributes:
        kind: What it is.
        where: The variable's name, or the file and its table; empty for the other two.
    """

    kind: Literal["default", "file", "variable", "flag"]
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}" if self.where else self.kind


DEFAULT = Source("default")
FLAG = Source("flag")


@dataclass(frozen=True, slots=True)
class Setting:
    """Something that can be set as text.

    Attributes:
        name: As in ``--set``: ``max_attempts``, ``checkpoints.save_every``.
        none: Whether it may be ``none``.
        truth: Whether it is true or false.
        listed: Whether it is a list.
    """

    name: str
    none: bool
    truth: bool
    listed: bool

    @property
    def variable(self) -> str:
        """The variable that sets it."""
        return PREFIX + self.name.upper().replace(".", "_")

    def value_in(self, policy: RecoveryPolicy) -> Any:
        """What it is in a policy."""
        found: Any = policy
        for part in self.name.split("."):
            found = getattr(found, part)
        return found

    def read(self, given: object) -> object:
        """The value that was written, for the policy to judge.

        Raises:
            UsageError: It is true or false, and this one is not; says what is allowed.
        """
        if isinstance(given, str):
            text = given.strip()
            if self.none and text.lower() == "none":
                return None
            if self.listed:
                return [part.strip() for part in text.split(",")] if text else []
            # A policy takes the word for the truth where it takes both; not where only one will do.
            return {"true": True, "false": False}.get(text.lower(), text) if self.truth else text
        within = given if isinstance(given, (list, tuple)) else (given,)
        if not self.truth and any(isinstance(each, bool) for each in within):
            # Python would count with it, and nobody who writes `true` means 1.
            raise UsageError("true and false are for switches, and this is none")
        return given


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        full = prefix + name
        if full == _TABLE:
            yield from _settings(CheckpointPolicy, f"{_TABLE}.")
        elif full not in _ONLY_IN_PYTHON:
            kinds = get_args(field.annotation) or (field.annotation,)
            listed = isinstance(field.default, tuple)
            truth = bool in kinds or any(isinstance(each, bool) for each in kinds)
            yield Setting(full, NoneType in kinds, truth, listed)


SETTINGS: Mapping[str, Setting] = {each.name: each for each in _settings(RecoveryPolicy)}
"""Everything that can be set as text, by name, in the order of the policy."""

_BY_VARIABLE = {each.variable: each.name for each in SETTINGS.values()}


@dataclass(frozen=True, slots=True)
class Table:
    """The settings of a file, as they stand there.

    Attributes:
        path: The file.
        name: Its table; empty for the top.
        content: What stands in it.
    """

    path: Path
    name: str
    content: Mapping[str, Any]

    def source(self, setting: str) -> Source:
        """Where a setting of this table stands."""
        inner = [self.name] if self.name else []
        inner += setting.split(".")[:-1]
        return Source("file", f"{self.path}: [{'.'.join(inner)}]" if inner else str(self.path))


@dataclass(frozen=True, slots=True)
class Resolved:
    """What came of the settings.

    Attributes:
        values: What is set, as ``RecoveryPolicy.model_validate`` takes it; no defaults.
        sources: Where each of :data:`SETTINGS` came from.
        policy: The policy they make.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, Source]
    policy: RecoveryPolicy


def resolve(
    flags: Mapping[str, Any], env: Mapping[str, str], table: Table | None = None
) -> Resolved:
    """The policy that flags, variables and a file make, the first of them first.

    Nothing is read: a pure decision.

    Args:
        flags: By name; ``{"checkpoints.save_every": 50}`` and ``{"checkpoints": {"save_every":
            50}}`` are the same, and a whole :class:`CheckpointPolicy` counts for all of its fields.
            What only a program can give is allowed here as well.
        env: The environment.
        table: The settings of a file.

    Raises:
        UsageError: A name is not known, or a value that would count is not allowed; says the
            name, the value, where it came from and what is allowed. All that is wrong at once.
    """
    wrong: list[str] = []
    chosen: dict[str, tuple[object, Source]] = {}
    if table is not None:
        for name, value in _flat(table.content):
            _choose(name, value, table.source(name), chosen, wrong)
    for variable in sorted(env):
        if not variable.startswith(PREFIX) or variable in _NO_SETTINGS:
            continue
        if variable in _BY_VARIABLE:
            source = Source("variable", variable)
            _choose(_BY_VARIABLE[variable], env[variable], source, chosen, wrong)
        else:
            # Its value is not shown: it may be a secret that was meant for somebody else.
            wrong.append(_unknown_variable(variable))
    if isinstance(flags.get(_TABLE), CheckpointPolicy):
        # It says all there is to say of its fields.
        chosen = {name: each for name, each in chosen.items() if not _is_inner(name)}
        wrong += [
            f"{name} is given twice: by itself, and in a CheckpointPolicy"
            for name in flags
            if _is_inner(name)
        ]
    for name, value in _flat(flags):
        if name in _ONLY_IN_PYTHON or (name == _TABLE and isinstance(value, CheckpointPolicy)):
            chosen[name] = value, FLAG
        else:
            _choose(name, value, FLAG, chosen, wrong)
    if wrong:
        raise UsageError("\n".join(wrong))
    return _made(chosen)


def _is_inner(name: str) -> bool:
    return name.startswith(f"{_TABLE}.")


def _made(chosen: Mapping[str, tuple[object, Source]]) -> Resolved:
    """The policy of what was chosen, judged by the policy itself."""
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for name, (given, source) in chosen.items():
        try:
            value = SETTINGS[name].read(given) if name in SETTINGS else given
        except UsageError as error:
            wrong.append(_refused(name, given, source, str(error)))
            continue
        table, _, leaf = name.rpartition(".")
        (values.setdefault(table, {}) if table else values)[leaf] = value
    if wrong:
        raise UsageError("\n".join(wrong))
    try:
        policy = RecoveryPolicy.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(_said(error, chosen))) from error
    # Where nothing is chosen of an inner one, it is by default or in a CheckpointPolicy.
    _, inner = chosen.get(_TABLE, (None, DEFAULT))
    sources = {
        name: chosen[name][1] if name in chosen else inner if _is_inner(name) else DEFAULT
        for name in SETTINGS
    }
    return Resolved(values, sources, policy)


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if name == _TABLE and isinstance(value, Mapping):
            yield from ((f"{_TABLE}.{inner}", each) for inner, each in value.items())
        else:
            yield name, value


def _choose(
    name: str,
    value: object,
    source: Source,
    chosen: dict[str, tuple[object, Source]],
    wrong: list[str],
) -> None:
    if name in SETTINGS:
        chosen[name] = value, source
    elif name == _TABLE:
        wrong.append(f"{name}={value!r}, from {source}, is not allowed: it is a table of settings")
    elif name in _ONLY_IN_PYTHON:
        wrong.append(
            f"{name}, from {source}, cannot be written as text: give it in the program, in a "
            + ("CheckpointPolicy" if _is_inner(name) else "RecoveryPolicy or policy_from_settings")
        )
    else:
        wrong.append(f"{name}, from {source}, is no setting{_nearest(name, SETTINGS)}")


def _unknown_variable(variable: str) -> str:
    bare = variable.removeprefix(PREFIX).lower()
    if bare == _TABLE:
        return f"variable {variable} sets nothing: {variable}_SAVE_EVERY, for one, does"
    for name in _ONLY_IN_PYTHON:
        if bare == name.replace(".", "_"):
            return f"variable {variable} sets nothing: {name} cannot be written as text"
    return f"variable {variable} sets nothing{_nearest(variable, _BY_VARIABLE)}"


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:
        leaf = difflib.get_close_matches(
            name.rpartition(".")[2], [each.rpartition(".")[2] for each in known], n=1
        )
        near = [each for each in known if leaf and each.rpartition(".")[2] == leaf[0]]
    meant = f": did you mean {near[0]}?" if near else ":"
    return f"{meant} `tinker-recovery config show` lists them all"


def _refused(name: str, value: object, source: Source, why: str) -> str:
    return f"{name}={value!r}, from {source}, is not allowed: {why}"


def _said(error: ValidationError, chosen: Mapping[str, tuple[object, Source]]) -> Iterator[str]:
    """What is wrong with the values, with where each came from."""
    for each in error.errors(include_url=False):
        why = each["msg"].removeprefix("Value error, ")
        place = [str(part) for part in each["loc"]]
        name = ".".join(place[:2] if place[:1] == [_TABLE] else place[:1])
        if name in chosen:
            yield _refused(name, *chosen[name], why)
            continue
        # Two that contradict each other: the message names both.
        named = [
            f"{setting} from {source}"
            for setting, (_, source) in chosen.items()
            if re.search(rf"\b{re.escape(setting.rpartition('.')[2])}\b", why)
        ]
        yield f"{why} ({', '.join(named)})" if named else f"{name or 'the settings'}: {why}"


def find_table(
    env: Mapping[str, str], *, config: Path | str | None = None, start: Path | None = None
) -> Table | None:
    """The settings of the file that counts; None if there is none.

    Args:
        env: The environment, which may name a file.
        config: The file to read, whatever the environment says.
        start: Where to begin to look for a ``pyproject.toml``; the working directory if None.

    Raises:
        UsageError: A file that was named is not there, or one that counts is no TOML.
    """
    named = config if config is not None else env.get(CONFIG)
    if named is not None:
        path = Path(named).expanduser()
        asked = "--config" if config is not None else CONFIG
        if not path.is_file():
            raise UsageError(f"{asked}={str(named)!r} is no file: a TOML file with settings")
        return _table(path)
    here = Path.cwd() if start is None else start
    for folder in (here, *here.parents):
        if (folder / _PYPROJECT).is_file():
            return _table(folder / _PYPROJECT)
    return None


def _table(path: Path) -> Table | None:
    try:
        content: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error
    if path.name != _PYPROJECT:
        return Table(path, "", content)
    for part in ("tool", "tinker_recovery"):
        content = content.get(part, {})
        if not isinstance(content, dict):
            raise UsageError(f"{path}: {part} is not allowed to be {content!r}: a table")
    return Table(path, "tool.tinker_recovery", content) if content else None


def policy_from_settings(*, config: Path | str | None = None, **overrides: Any) -> RecoveryPolicy:
    """A policy from the user's settings, where the program does not say otherwise.

    ::

        policy = policy_from_settings(enabled=True, on_recovery=tell)
        async with Supervisor(policy) as supervisor: ...

    Each field is looked for in ``overrides``, then in the variables ``TINKER_RECOVERY_*``, then in
    ``[tool.tinker_recovery]`` of the nearest ``pyproject.toml`` (or in the file that
    ``TINKER_RECOVERY_CONFIG`` names), and has its default otherwise. ``tinker-recovery config
    show`` tells what that comes to. ``RecoveryPolicy()`` itself reads none of it.

    Args:
        config: The TOML file to read, whatever the environment says.
        overrides: Fields of :class:`RecoveryPolicy`. ``checkpoints`` may be a mapping, of which
            each field counts by itself, or a :class:`CheckpointPolicy`, which counts as a whole.

    Raises:
        UsageError: Something is not allowed, or not known: says what, where it stands, and what
            is allowed.
    """
    return resolve(overrides, os.environ, find_table(os.environ, config=config)).policy
