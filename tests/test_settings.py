"""Settings from flags, variables and a file: what counts, where it came from, what is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, Supervisor, policy_from_settings
from tinker_recovery.errors import UsageError
from tinker_recovery.jobs import Jobs
from tinker_recovery.policy_settings import SETTINGS, Resolved, Table, find_table, resolve

FILE = Path("/project/pyproject.toml")


def _table(content: dict[str, Any]) -> Table:
    return Table(FILE, "tool.tinker_recovery", content)


def _said_by(resolved: Resolved, name: str) -> tuple[object, str]:
    return SETTINGS[name].value_in(resolved.policy), str(resolved.sources[name])


def test_without_any_settings_the_policy_is_the_default_one() -> None:
    others = (
        "PATH",
        "TINKER_API_KEY",
        "TINKER_RECOVERY_STATE_DIR",
        "TINKER_RECOVERY_FINISHED_FILE",
        "TINKER_RECOVERY_RUN",
    )
    resolved = resolve({}, dict.fromkeys((*others, "TINKER_RECOVERY_CONFIG"), "x"))
    assert resolved.policy == RecoveryPolicy()
    assert {str(each) for each in resolved.sources.values()} == {"default"}


def test_everything_but_callables_and_the_canary_can_be_set() -> None:
    inner = {f"checkpoints.{name}" for name in CheckpointPolicy.model_fields}
    python_only = {"retryable_errors", "on_skip", "on_recovery", "on_failure", "canary"}
    expected = (set(RecoveryPolicy.model_fields) | inner) - python_only
    objects = {"checkpoints.keep_if", "checkpoints.schedule", "checkpoints.retention"}
    assert set(SETTINGS) == expected - {"checkpoints"} - objects


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("max_attempts", "5", 5),
        ("backoff_s", " 2.5 ", 2.5),
        ("enabled", "true", True),
        ("enabled", "0", False),
        ("stall_after_s", "none", None),
        ("backoff_type", "linear", "linear"),
        ("checkpoint_strategy", "step:12", "step:12"),
        ("checkpoints.save_every", "50", 50),
        ("checkpoints.save_at_steps", "10,20, 30", (10, 20, 30)),
        ("checkpoints.save_at_steps", "", ()),
        ("checkpoints.best_metric", "none", "none"),
        ("checkpoints.push_to_hub", "false", False),
        ("checkpoints.push_to_hub", "true", True),
        ("checkpoints.push_to_hub", "me/sft-42", "me/sft-42"),
        ("checkpoints.format", "gguf", "gguf"),
    ],
)
def test_a_variable_is_read_as_what_its_field_is(name: str, written: str, value: object) -> None:
    variable = SETTINGS[name].variable
    found = _said_by(resolve({}, {variable: written}), name)
    assert found == (value, f"variable {variable}")


def test_a_file_has_the_types_of_toml_and_is_named_with_its_table() -> None:
    checkpoints = {"save_every": 50, "save_at_steps": [10, 20], "ttl_s": "none"}
    content = {"enabled": True, "backoff_s": 2, "checkpoints": checkpoints}
    resolved = resolve({}, {}, _table(content))
    assert _said_by(resolved, "enabled") == (True, f"file {FILE}: [tool.tinker_recovery]")
    assert _said_by(resolved, "backoff_s")[0] == 2.0
    assert _said_by(resolved, "checkpoints.save_at_steps") == (
        (10, 20),
        f"file {FILE}: [tool.tinker_recovery.checkpoints]",
    )


_VARIABLE = "TINKER_RECOVERY_MAX_ATTEMPTS"


@pytest.mark.parametrize(
    ("flags", "env", "file", "said"),
    [
        # The value, where it came from, and what is allowed.
        ({}, {_VARIABLE: "many"}, {}, f"max_attempts='many', from variable {_VARIABLE}, is not"),
        ({}, {_VARIABLE: "many"}, {}, "a valid integer"),
        ({}, {_VARIABLE: "0"}, {}, "greater than or equal to 1"),
        ({}, {_VARIABLE: ""}, {}, f"from variable {_VARIABLE}, is not allowed"),
        (
            {},
            {},
            {"max_attempts": True},
            f"=True, from file {FILE}: [tool.tinker_recovery], is not",
        ),
        ({}, {}, {"checkpoints": {"save_at_steps": [True]}}, "true and false are for switches"),
        ({}, {}, {"checkpoints": {"save_every": 0}}, "[tool.tinker_recovery.checkpoints], is not"),
        ({}, {}, {"checkpoints": 7}, "it is a table of settings"),
        ({"checkpoint_strategy": "newest"}, {}, {}, "from flag, is not allowed: checkpoint_str"),
        ({"checkpoints": {"push_to_hub": "me"}}, {}, {}, "a repository as 'owner/name'"),
        # Two that contradict each other, and where each stands.
        ({"backoff_s": 9}, {}, {"max_backoff_s": 8}, "backoff_s from flag"),
        ({"backoff_s": 9}, {}, {"max_backoff_s": 8}, f"max_backoff_s from file {FILE}"),
        # Names that are not known.
        ({"max_atempts": 5}, {}, {}, "did you mean max_attempts?"),
        ({"save_every": 5}, {}, {}, "did you mean checkpoints.save_every?"),
        ({}, {}, {"checkpoints": {"save_evry": 1}}, "did you mean checkpoints.save_every?"),
        ({}, {"TINKER_RECOVERY_MAX_ATEMPTS": "5"}, {}, f"did you mean {_VARIABLE}?"),
        ({}, {"TINKER_RECOVERY_CHECKPOINTS": "5"}, {}, "CHECKPOINTS_SAVE_EVERY"),
        # What only a program can give.
        ({}, {"TINKER_RECOVERY_ON_SKIP": "f"}, {}, "on_skip cannot be written as text"),
        ({}, {}, {"on_skip": "f"}, "give it in the program, in a RecoveryPolicy"),
        ({}, {}, {"checkpoints": {"keep_if": "f"}}, "in a CheckpointPolicy"),
    ],
)
def test_what_is_not_allowed_is_refused_with_where_it_stands_and_what_is(
    flags: dict[str, Any], env: dict[str, str], file: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(flags, env, _table(file))
    assert said in str(caught.value)


def test_all_that_is_wrong_is_said_at_once_and_no_secret_with_it() -> None:
    with pytest.raises(UsageError) as caught:
        resolve({}, {"TINKER_RECOVERY_API_KEY": "tml-secret", "TINKER_RECOVERY_NO": "1"})
    assert len(str(caught.value).splitlines()) == 2
    assert "secret" not in str(caught.value)


def test_names_switches_and_values_that_are_wrong_are_said_together() -> None:
    file = {"max_atempts": 1, "max_attempts": True, "backoff_s": -1, "checkpoints": {"ttl": 1}}
    with pytest.raises(UsageError) as caught:
        resolve({"enabled": "perhaps"}, {"TINKER_RECOVERY_NO": "1"}, _table(file))
    said = str(caught.value)
    assert len(said.splitlines()) == 6
    assert "did you mean max_attempts?" in said
    assert "did you mean checkpoints.ttl_s?" in said
    assert "max_attempts=True, from file" in said
    assert "backoff_s=-1, from file" in said
    assert "enabled='perhaps', from flag" in said
    assert "variable TINKER_RECOVERY_NO sets nothing" in said


def test_a_setting_whose_name_begins_with_another_field_is_its_own() -> None:
    """CANARY_TOLERANCE is not the TOLERANCE of the canary, which only a program can give."""
    variable = "TINKER_RECOVERY_CANARY_TOLERANCE"
    resolved = resolve({}, {variable: "0.5"})
    assert _said_by(resolved, "canary_tolerance") == (0.5, f"variable {variable}")
    assert resolved.policy.canary == "auto"


@pytest.mark.parametrize("content", ["tool = 3", "[tool]\ntinker_recovery = 3"])
def test_our_table_of_a_pyproject_has_to_be_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"tool\.tinker_recovery has to be a table"):
        find_table({}, config=path)


_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "max_attempts": st.integers(1, 99),
    "backoff_s": st.floats(0, 60),
    "enabled": st.booleans(),
    "stall_after_s": st.none() | st.floats(0.001, 1e6),
    "on_repeated_fault": st.sampled_from(["retry", "skip_step"]),
    "checkpoints.save_every": st.integers(1, 1000),
    "checkpoints.save_at_steps": st.lists(st.integers(1, 99), max_size=3).map(tuple),
    "checkpoints.best_metric": st.sampled_from(["loss", "accuracy"]),
}
_CHOICE = st.fixed_dictionaries({}, optional=_VALUES)


def _as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        table, _, leaf = name.rpartition(".")
        written = "none" if value is None else list(value) if isinstance(value, tuple) else value
        (nested.setdefault(table, {}) if table else nested)[leaf] = written
    return nested


@given(flags=_CHOICE, env=_CHOICE, file=_CHOICE)
def test_each_setting_by_itself_is_the_flags_then_the_variables_then_the_files_then_the_default(
    flags: dict[str, Any], env: dict[str, Any], file: dict[str, Any]
) -> None:
    variables = {SETTINGS[name].variable: _as_text(value) for name, value in env.items()}
    resolved = resolve(flags, variables, _table(_nested(file)))
    for name, setting in SETTINGS.items():
        given_by = [
            (kind, said[name])
            for kind, said in (("flag", flags), ("variable", env), ("file", file))
            if name in said
        ]
        usual = setting.value_in(RecoveryPolicy())
        if name == "checkpoints.strategy" and "checkpoints.save_every" in {**flags, **env, **file}:
            usual = "steps"
        kind, value = (*given_by, ("default", usual))[0]
        assert setting.value_in(resolved.policy) == value
        assert resolved.sources[name].kind == kind
    assert RecoveryPolicy.model_validate(resolved.values) == resolved.policy


def test_the_file_is_the_nearest_pyproject_upwards_or_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = tmp_path / "project" / "src"
    within.mkdir(parents=True)
    monkeypatch.chdir(within)
    project = tmp_path / "project" / "pyproject.toml"
    project.write_text("[tool.tinker_recovery]\nmax_attempts = 4\n")
    own = tmp_path / "own.toml"
    own.write_text("max_attempts = 6\n[checkpoints]\nsave_every = 7\n")
    assert find_table({}) == Table(project, "tool.tinker_recovery", {"max_attempts": 4})
    named = find_table({"TINKER_RECOVERY_CONFIG": str(own)})
    assert named is not None
    assert (named.path, str(named.source("checkpoints.save_every"))) == (
        own,
        f"file {own}: [checkpoints]",
    )
    flagged = find_table({"TINKER_RECOVERY_CONFIG": str(own)}, config=project)
    assert flagged is not None
    assert flagged.content == {"max_attempts": 4}
    # The nearest one is the project's, whether it has a word for us or not.
    (within / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert find_table({}) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no file"),
        (b"max_attempts = \n", "cannot be read as TOML"),
        (b"\xff", "cannot be read as TOML"),
    ],
)
def test_a_file_that_is_named_has_to_be_there_and_be_toml(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "own.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        find_table({"TINKER_RECOVERY_CONFIG": str(path)})


def test_a_script_gets_a_policy_of_the_settings_and_its_own_word_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.tinker_recovery]\nmax_attempts = 4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINKER_RECOVERY_CHECKPOINTS_SAVE_EVERY", "50")
    monkeypatch.setenv("TINKER_RECOVERY_POLL_INTERVAL_S", "7")
    policy = policy_from_settings(
        enabled=True, poll_interval_s=2, on_recovery=print, checkpoints={"keep_last": 2}
    )
    assert policy == RecoveryPolicy(
        enabled=True,
        max_attempts=4,
        poll_interval_s=2,
        on_recovery=print,
        checkpoints=CheckpointPolicy(save_every=50, keep_last=2),
    )
    whole = CheckpointPolicy(keep_last=3)
    assert policy_from_settings(checkpoints=whole).checkpoints == whole
    assert RecoveryPolicy().max_attempts == 3
    assert Supervisor().policy == policy_from_settings()
    assert Supervisor(RecoveryPolicy()).policy == RecoveryPolicy()
    monkeypatch.setenv("TINKER_RECOVERY_MAX_ATTEMPTS", "many")
    with pytest.raises(UsageError, match="max_attempts='many', from variable"):
        Supervisor()
    twice: dict[str, Any] = {"checkpoints": whole, "checkpoints.keep_last": 1}
    with pytest.raises(UsageError, match="given twice"):
        policy_from_settings(**twice)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            CheckpointPolicy(save_every=20),
            "CheckpointPolicy, .* as RecoveryPolicy(checkpoints=CheckpointPolicy(...)), or None",
        ),
        ({"max_attempts": 5}, "dict, .* as RecoveryPolicy(**settings), or"),
        (
            RecoveryPolicy,
            "ModelMetaclass, the class RecoveryPolicy, .* as RecoveryPolicy(...), or",
        ),
        (5, "int, .* as RecoveryPolicy(...), or"),
    ],
)
@pytest.mark.parametrize("takes_it", [Supervisor, Jobs])
def test_what_is_no_policy_is_refused_where_it_is_given(
    takes_it: Callable[..., object], value: object, said: str
) -> None:
    words = f"policy is of type {said}"
    with pytest.raises(UsageError, match=".*".join(map(re.escape, words.split(".*")))):
        takes_it(policy=value)


@pytest.mark.parametrize("value", ["https://user:secret@tinker.example", 5])
def test_a_service_that_is_no_function_is_refused_by_its_type_alone(value: object) -> None:
    """What was given may hold a credential."""
    with pytest.raises(UsageError, match=f"service is of type {type(value).__name__}, ") as caught:
        Supervisor(service=cast("Any", value))
    assert "function that returns a fresh client" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"journal": 3}, "journal=3 is not allowed: give the path of a file, or None for memory"),
        ({"journal": ""}, "journal='' is not allowed: give the path of a file"),
        ({"journal": b"runs"}, "journal=b'runs' is not allowed: give the path of a file"),
        ({"notify": 3}, "notify is of type int, which is not allowed: a list of URLs, or a Notify"),
        ({"on_event": 3}, "on_event=3 is not allowed: a function that is called with each "),
        ({"clock": 3}, "clock=3 is not allowed: a Clock, "),
        ({"quiet": "no"}, "quiet='no' is not allowed: True or False"),
    ],
    ids=str,
)
def test_an_argument_of_another_kind_is_refused_where_it_is_given(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Supervisor(**given)
    assert str(caught.value).startswith(said)


def test_an_async_listener_which_nobody_would_await_is_refused() -> None:
    async def listen(event: object) -> None:
        """Do something."""

    class Listener:
        async def __call__(self, event: object) -> None:
            """Do something."""

    for each in (listen, functools.partial(listen), Listener()):
        with pytest.raises(UsageError, match="is not allowed: it is async, and what it returns"):
            Supervisor(on_event=each)
