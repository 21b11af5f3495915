"""What the documents show works: code runs or is looked through, commands have these options."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import click
import pytest
import tinker
from documents import RUN_IN_AN_ATTEMPT, Block, blocks, docstring_blocks, spans
from prelude import STEPS, namespace

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    RecoveryPolicy,
    StartOptions,
    SupervisedClient,
    Supervisor,
    recover_from_checkpoint,
)
from tinker_recovery.cli import main
from tinker_recovery.jobs import RetryPolicy
from tinker_recovery.testing import LocalTinker

PYTHON = [block for block in blocks() if block.kind == "python"]
RUN = [block for block in PYTHON if block.marker]


async def _run(code: str, names: dict[str, Any]) -> None:
    compiled = compile(code, "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if compiled.co_flags & inspect.CO_COROUTINE:
        await eval(compiled, names)  # noqa: S307 - our own snippet
    else:  # it may block, as a script does
        await anyio.to_thread.run_sync(exec, compiled, names)


@pytest.mark.parametrize("block", RUN, ids=str)
async def test_a_snippet_that_says_so_runs_against_the_local_server(
    local: LocalTinker, block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = namespace()
    if "recover_from_checkpoint(path)" in block.code:
        names["path"] = await _a_checkpoint(local, names)
    run = _run_in_an_attempt if block.marker == RUN_IN_AN_ATTEMPT else _run
    try:
        await run(re.sub(r"\b1000\b", str(STEPS), block.code), names)
    finally:
        await names["tinker"].aclose()
    if "range" in block.code and "LocalTinker" not in block.code and "ppo" not in block.code:
        assert local.run_state(local.runs()[0]).steps == STEPS


async def _a_checkpoint(local: LocalTinker, names: dict[str, Any]) -> str:
    async with Supervisor(names["policy"]) as supervisor:
        await supervisor.run(names["train"], base_model=names["MODEL"], rank=8)
    return local.checkpoints(local.runs()[0])[-1].path


async def _run_in_an_attempt(code: str, names: dict[str, Any]) -> None:
    async def body(attempt: Attempt) -> None:
        await _run(code, names | {"attempt": attempt})

    async with Supervisor(names["policy"]) as supervisor:
        await supervisor.run(body, base_model=names["MODEL"], rank=8)


def test_most_snippets_run() -> None:
    assert len(RUN) >= 0.6 * len(PYTHON), [str(block) for block in PYTHON if not block.marker]


CALLS: dict[str, Callable[..., Any]] = {
    "RecoveryPolicy": RecoveryPolicy,
    "policy_from_settings": RecoveryPolicy,
    "CheckpointPolicy": CheckpointPolicy,
    "RetryPolicy": RetryPolicy,
    "Supervisor": Supervisor,
    "recover_from_checkpoint": recover_from_checkpoint,
}
OURS = "tinker_recovery"
OBJECTS: dict[str, tuple[type, ...]] = {
    "attempt": (Attempt,),
    "supervisor": (Supervisor,),
    "attempt.client": (SupervisedClient, tinker.TrainingClient),
}


def _wrong(node: ast.AST) -> Iterator[str]:
    """What a line of a snippet names that there is not."""
    match node:
        case ast.ImportFrom(module=str(module), names=names) if module.startswith(OURS):
            found = importlib.import_module(module)
            yield from (f"{module}.{each.name}" for each in names if not hasattr(found, each.name))
        case ast.Call(func=ast.Name(id=name), keywords=given) if name in CALLS:
            known = {*inspect.signature(CALLS[name]).parameters, "config"}
            yield from (f"{name}({each.arg}=)" for each in given if each.arg not in {*known, None})
        case ast.Call(func=ast.Attribute(attr="attempts" | "run", value=value), keywords=given):
            if ast.unparse(value) in {"supervisor", "blocking"}:
                known = set(StartOptions.__annotations__)
                yield from (f"{each.arg}=" for each in given if each.arg not in {*known, None})
        case ast.Attribute(value=value, attr=name) if ast.unparse(value) in OBJECTS:
            if not any(hasattr(each, name) for each in OBJECTS[ast.unparse(value)]):
                yield ast.unparse(node)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_every_snippet_compiles_and_names_only_what_there_is(block: Block) -> None:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
    tree = compile(block.code, str(block), "exec", flags=flags)
    assert [each for node in ast.walk(tree) for each in _wrong(node)] == []


def test_every_example_in_a_docstring_names_only_what_there_is() -> None:
    examples = [block for block in docstring_blocks() if block.kind == "python"]
    assert len(examples) > 5
    for block in examples:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
        tree = compile(block.code, str(block), "exec", flags=flags)
        assert [each for node in ast.walk(tree) for each in _wrong(node)] == [], str(block)


def _commands(code: str) -> Iterator[list[str]]:
    """The words of each of our commands in a block for the shell."""
    for line in code.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a sentence, in a block that shows what is printed
            continue
        for start, word in enumerate(words):
            if word == "tinker-recovery" and (start == 0 or words[start - 1] in {"&&", "$", ";"}):
                rest = words[start + 1 :]
                ends = [rest.index(each) for each in ("&&", "|", ";", "&") if each in rest]
                yield rest[: min(ends, default=len(rest))]


COMMANDS = [
    (str(block), words)
    for block in blocks()
    if block.kind in {"", "bash", "sh", "console"}
    for words in _commands(block.code)
]


def _found(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words call, and what is left of them."""
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group) and words:
        while words and words[0].startswith("-"):
            words = words[1:]
        if not words:
            break
        inner = command.get_command(context, words[0])
        assert inner is not None, f"no command {words[0]!r}"
        command, words = inner, words[1:]
    return command, words


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=[" ".join(each[1]) for each in COMMANDS])
def test_every_command_in_a_block_is_one_that_is_understood(where: str, words: list[str]) -> None:
    command, rest = _found(words)
    try:
        command.make_context(command.name, list(rest)).close()
    except click.exceptions.Exit:
        pass  # --help and --version
    except click.UsageError as error:
        # A file of the reader's is not here.
        if not re.search("does not exist|No such file", error.message):
            pytest.fail(f"{where}: {error.format_message()}")


@pytest.mark.parametrize(("where", "text"), sorted(set(spans())), ids=str)
def test_every_command_in_a_sentence_has_the_options_that_are_named(where: str, text: str) -> None:
    words = text.split()[1:]
    if words[0] in {"COMMAND", "-v"}:
        return
    command, rest = _found(words)
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    given = {word.partition("=")[0] for word in rest[: [*rest, "--"].index("--")]}
    unknown = {word for word in given if word.startswith("-") and word != "-"} - known
    assert unknown - {"--help", "-h"} == set(), f"{where}: {text}"
