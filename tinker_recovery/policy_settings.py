"""Settings: a policy from a file, the environment and the command line.

What the program gives comes first, then flags, then variables, then the file, then the default.

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
not known is refused like a bad value: a typo would set nothing, and stay unseen.

pydantic-settings reads the sources. Ours is where each value came from, and what is refused.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from tinker_recovery.checkpoint_policy import CheckpointPolicy
from tinker_recovery.errors import UsageError
from tinker_recovery.policy import RecoveryPolicy

PREFIX = "TINKER_RECOVERY_"
CONFIG = f"{PREFIX}CONFIG"
"""The variable that names a file."""

_NO_SETTINGS = frozenset(
    {CONFIG, f"{PREFIX}STATE_DIR", f"{PREFIX}FINISHED_FILE", f"{PREFIX}SDK_WORKAROUNDS"}
    | {f"{PREFIX}DATABASE", f"{PREFIX}NOTIFY", f"{PREFIX}OTEL", f"{PREFIX}RUN"}
)
"""Variables of ours that are not about the policy."""

_ONLY_IN_PYTHON = frozenset(
    {
        "retryable_errors",
        "on_skip",
        "on_recovery",
        "on_failure",
        "canary",
        "checkpoints.schedule",
        "checkpoints.retention",
        "checkpoints.keep_if",
    }
)
_TABLE = "checkpoints"
_PYPROJECT = "pyproject.toml"


class _Settings(BaseSettings, RecoveryPolicy):
    """The policy as pydantic-settings looks for it; never made."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        enable_decoding=False,  # A list is 10,20, and not JSON.
        pyproject_toml_table_header=("tool", "tinker_recovery"),
    )


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from: what that is, and the variable's name or the file and its table."""

    kind: Literal["default", "file", "variable", "flag"]
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}" if self.where else self.kind


DEFAULT = Source("default")
FLAG = Source("flag")


def _variable(name: str) -> str:
    return PREFIX + name.upper().replace(".", "_")


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _number(text: str, kinds: Sequence[Any]) -> object:
    """The number of a text where one is wanted; the text itself if it is none, to be refused."""
    for kind in (int, float):
        if kind in kinds:
            with contextlib.suppress(ValueError):
                return kind(text)
    return text


_SWITCHES = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(
    ("false", "no", "off", "0"), False
)


@dataclass(frozen=True, slots=True)
class Setting:
    """Something that can be set as text, by a name such as ``checkpoints.save_every``."""

    name: str
    field: FieldInfo

    @property
    def variable(self) -> str:
        """The variable that sets it."""
        return _variable(self.name)

    def value_in(self, policy: RecoveryPolicy) -> Any:
        """What it is in a policy."""
        return attrgetter(self.name)(policy)

    def read(self, given: object) -> object:
        """The value that was written, for the policy to judge.

        Raises:
            ValueError: It is true or false, and the setting is no switch.
        """
        kinds = [_bare(kind) for kind in get_args(self.field.annotation)] or [self.field.annotation]
        is_switch = any(kind is bool or isinstance(kind, bool) for kind in kinds)
        if isinstance(given, str):
            text = given.strip()
            if NoneType in kinds and text.lower() == "none":
                return None
            if isinstance(self.field.default, tuple):
                return [_number(each, kinds) for each in text.split(",")] if text else []
            return _SWITCHES.get(text.lower(), text) if is_switch else _number(text, kinds)
        within = given if isinstance(given, (list, tuple)) else (given,)
        if not is_switch and any(isinstance(each, bool) for each in within):
            # Python would count with it, and whoever writes `true` does not mean 1.
            raise ValueError("true and false are for switches, and this is none")
        return given


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        if name == _TABLE:
            yield from _settings(CheckpointPolicy, f"{_TABLE}.")
        elif prefix + name not in _ONLY_IN_PYTHON:
            yield Setting(prefix + name, field)


SETTINGS: Mapping[str, Setting] = {each.name: each for each in _settings(RecoveryPolicy)}
"""Everything that can be set as text, by name, in the order of the policy."""


@dataclass(frozen=True, slots=True)
class Table:
    """The settings of a file as they stand there, in a table of this name, or at the top."""

    path: Path
    name: str
    content: Mapping[str, Any]

    def source(self, setting: str) -> Source:
        """Where a setting of this table stands."""
        inner = ".".join(filter(None, [self.name, *setting.split(".")[:-1]]))
        return Source("file", f"{self.path}: [{inner}]" if inner else str(self.path))


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
    chosen: dict[str, tuple[object, Source]] = {}
    wrong: list[str] = []
    for name, value, source in _given(flags, env, table):
        if name not in SETTINGS and (name not in _ONLY_IN_PYTHON or source != FLAG):
            wrong.append(_no_setting(name, value, source))
        elif source == FLAG and chosen.get(name, (None, DEFAULT))[1] == FLAG:
            wrong.append(f"{name} is given twice: by itself, and in {_TABLE}")
        else:
            chosen[name] = value, source
    values, refused = _read(chosen, left_open=_left_open(flags.get(_TABLE)))
    wrong += refused
    try:
        policy = RecoveryPolicy.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join([*wrong, *_explained(error, chosen)])) from error
    if wrong:
        raise UsageError("\n".join(wrong))
    sources = {name: chosen[name][1] if name in chosen else DEFAULT for name in SETTINGS}
    return Resolved(values, sources, policy)


def _read(
    chosen: Mapping[str, tuple[object, Source]], *, left_open: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """What was chosen as the policy takes it, and what is wrong with the rest."""
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for name, (value, source) in chosen.items():
        if name in left_open:
            continue
        outer, _, leaf = name.rpartition(".")
        try:
            read = SETTINGS[name].read(value) if name in SETTINGS else value
        except ValueError as error:
            wrong.append(_refused(name, value, source, str(error)))
        else:
            (values.setdefault(outer, {}) if outer else values)[leaf] = read
    return values, wrong


def _left_open(checkpoints: object) -> frozenset[str]:
    """What a whole CheckpointPolicy does not set: its defaults count, and are not set by that."""
    if not isinstance(checkpoints, CheckpointPolicy):
        return frozenset()
    left = CheckpointPolicy.model_fields.keys() - checkpoints.model_fields_set
    return frozenset(f"{_TABLE}.{each}" for each in left)


def _given(
    flags: Mapping[str, Any], env: Mapping[str, str], table: Table | None
) -> Iterator[tuple[str, object, Source]]:
    """Each name that is given, its value and where it stands; the last one of a name counts."""
    if table is not None:
        yield from ((name, value, table.source(name)) for name, value in _flat(table.content))
    known = {each.variable for each in SETTINGS.values()}
    variables = EnvSettingsSource(_Settings)
    variables.env_vars = {each.lower(): env[each] for each in known if each in env}
    for name, value in _flat(variables()):
        # TINKER_RECOVERY_CANARY_TOLERANCE is found as the TOLERANCE of a CANARY as well.
        if name in SETTINGS:
            yield name, value, Source("variable", _variable(name))
    for variable in sorted(env.keys() - known - _NO_SETTINGS):
        if variable.startswith(PREFIX):
            # Its value is not shown: it may be a secret that was meant for another program.
            yield variable, "***", Source("variable", variable)
    yield from ((name, value, FLAG) for name, value in _flat(flags))


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if name == _TABLE and isinstance(value, (Mapping, CheckpointPolicy)):
            yield from ((f"{_TABLE}.{inner}", each) for inner, each in dict(value).items())
        else:
            yield name, value


def _no_setting(name: str, value: object, source: Source) -> str:
    """Why a name cannot be set, and what may have been meant."""
    is_variable = source.kind == "variable"
    if is_variable:
        name = {_variable(each): each for each in (_TABLE, *_ONLY_IN_PYTHON)}.get(name, name)
    if name == _TABLE:
        example = "checkpoints.save_every (TINKER_RECOVERY_CHECKPOINTS_SAVE_EVERY)"
        return _refused(name, value, source, f"it is a table of settings, such as {example}")
    if name in _ONLY_IN_PYTHON:
        policy = "CheckpointPolicy" if "." in name else "RecoveryPolicy or policy_from_settings"
        return f"{name} cannot be written as text ({source}): give it in the program, in a {policy}"
    known = [each.variable if is_variable else each.name for each in SETTINGS.values()]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:
        by_leaf = {each.rpartition(".")[2]: each for each in known}
        leaf = difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1)
        near = [by_leaf[each] for each in leaf]
    meant = f"did you mean {near[0]}? " if near else ""
    what = f"{source} sets nothing" if is_variable else f"{name}, from {source}, is no setting"
    return f"{what}: {meant}`tinker-recovery config show` lists them all"


def _refused(name: str, value: object, source: Source, why: str) -> str:
    return f"{name}={value!r}, from {source}, is not allowed: {why}"


def _explained(
    error: ValidationError, chosen: Mapping[str, tuple[object, Source]]
) -> Iterator[str]:
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


def find_table(env: Mapping[str, str], *, config: Path | str | None = None) -> Table | None:
    """The settings of the file that counts; None if there is none.

    Args:
        env: The environment, which may name a file.
        config: The file to read, whatever the environment says.

    Raises:
        UsageError: A file that was named is not there, or one that counts is no TOML.
    """
    named = config if config is not None else env.get(CONFIG)
    if named is None:
        nearest = (each / _PYPROJECT for each in (Path.cwd(), *Path.cwd().parents))
        path = next((each for each in nearest if each.is_file()), None)
        if path is None:
            return None
    else:
        path = Path(named).expanduser()
        if not path.is_file():
            asked = "--config" if config is not None else CONFIG
            raise UsageError(f"{asked}={str(named)!r} is no file: a TOML file with settings")
    try:
        if path.name != _PYPROJECT:
            return Table(path, "", TomlConfigSettingsSource(_Settings, path)())
        content = PyprojectTomlConfigSettingsSource(_Settings, path)()
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error
    except (AttributeError, TypeError) as error:
        raise UsageError(f"{path}: tool.tinker_recovery has to be a table") from error
    return Table(path, "tool.tinker_recovery", content) if content else None


def given_or_set(policy: object) -> RecoveryPolicy:
    """The policy that was given, or without one what the user's settings say.

    Raises:
        UsageError: What was given is no policy; or a setting is not allowed.
    """
    if policy is None:
        return policy_from_settings()
    if isinstance(policy, RecoveryPolicy):
        return policy
    given, instead = type(policy).__name__, "RecoveryPolicy(...)"
    if isinstance(policy, type):
        given = f"{given}, the class {policy.__name__}"
    elif isinstance(policy, CheckpointPolicy):
        instead = "RecoveryPolicy(checkpoints=CheckpointPolicy(...))"
    elif isinstance(policy, Mapping):
        instead = "RecoveryPolicy(**settings)"
    raise UsageError(
        f"policy is of type {given}, which is not allowed: give a RecoveryPolicy, as {instead}, "
        "or None for the user's settings"
    )


def policy_from_settings(*, config: Path | str | None = None, **overrides: Any) -> RecoveryPolicy:
    """A policy from the user's settings, where the program does not give a value itself.

    ::

        policy = policy_from_settings(on_recovery=tell)
        async with Supervisor(policy) as supervisor: ...

    Each field is looked for in ``overrides``, then in the variables ``TINKER_RECOVERY_*``, then in
    ``[tool.tinker_recovery]`` of the nearest ``pyproject.toml`` (or in the file that
    ``TINKER_RECOVERY_CONFIG`` names), and has its default otherwise. ``tinker-recovery config
    show`` shows the result. ``Supervisor()`` without a policy takes this one; ``RecoveryPolicy()``
    itself reads none of it.

    Args:
        config: The TOML file to read, whatever the environment says.
        overrides: Fields of :class:`RecoveryPolicy`. ``checkpoints`` may be a mapping, of which
            each field counts by itself, or a :class:`CheckpointPolicy`, which counts as a whole.

    Raises:
        UsageError: Something is not allowed, or not known: says what, where it stands, and what
            is allowed.
    """
    return resolve(overrides, os.environ, find_table(os.environ, config=config)).policy
