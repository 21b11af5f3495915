"""``tinker-recovery export``: from a checkpoint to an adapter that others can load."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import click

from tinker_recovery.cli.common import (
    NO_SUCH_RUN,
    demo_server,
    echo,
    journal_file,
    journal_option,
    plain_console,
    refuse,
    refuse_because,
)
from tinker_recovery.cli.kept_demos import demo_with, is_local

if TYPE_CHECKING:
    from tinker_recovery.checkpoint_policy import Format
    from tinker_recovery.export.exporter import ExportProgress
    from tinker_recovery.export.hub import Published
    from tinker_recovery.export.manifest import CheckpointFacts, Manifest

NOT_EXPORTED, WRONG, AGAIN = 1, 2, 3


@click.command()
@click.argument("target", metavar="PATH|RUN")
@click.option(
    "--to",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write, made if it does not exist. Needed without --push.",
)
@click.option(
    "--push",
    metavar="OWNER/NAME",
    help="Also publish it in this repository of the hub, which is made private.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "pytorch", "gguf"]),
    help="Default: checkpoints.format of your settings, which is safetensors.",
)
@click.option(
    "--checkpoint",
    "strategy",
    metavar="WHICH",
    default="latest",
    show_default=True,
    help="Which checkpoint of RUN: latest, best or step:N.",
)
@click.option(
    "--base",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the base model; its config.json is enough for --format gguf.",
)
@click.option(
    "--merge",
    "merged",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Also merge it into the base model, which is downloaded whole (or --base DIR), and write "
    "that here; needs tinker_cookbook.",
)
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on the last line.")
def command(  # noqa: PLR0913 - one argument for each option
    *,
    target: str,
    folder: Path | None,
    push: str | None,
    form: Format | None,
    strategy: str,
    base: Path | None,
    merged: Path | None,
    journal: Path | None,
    as_json: bool,
) -> None:
    r"""Export a checkpoint as an adapter that others can load, or publish it on a hub.

    \b
        tinker-recovery export sft-42 --to adapter
        tinker-recovery export sft-42 --checkpoint best --to adapter --format gguf
        tinker-recovery export tinker://RUN/weights/NAME --to adapter
        tinker-recovery export sft-42 --push me/sft-42

    RUN is a name, as in `tinker-recovery runs`, or a Tinker run id. Of a run, the newest checkpoint
    that a recovery would trust is exported, or the one that --checkpoint says.

    \b
    safetensors   the layout of PEFT: PeftModel.from_pretrained(base, DIR) loads it
    pytorch       the same as adapter_model.bin; needs pip install "tinker-recovery[torch]"
    gguf          for llama.cpp; needs pip install "tinker-recovery[gguf]"

    The checkpoint is loaded into a session of its own, which costs no tokens, and its files are
    downloaded, checked and written. Interrupted, the same command goes on where it was, for an
    hour. Called again for a folder that is whole, it does nothing. Run and checkpoint stay as they
    are.

    --merge merges it into the base model by tinker_cookbook.weights, where that is installed.

    With --push the folder becomes one commit, with a model card. HF_TOKEN is the token, and
    HF_ENDPOINT another hub. What the repository holds already is not pushed again, and one that
    holds another run is refused.

    \b
    Exit status: 0 if the folder is whole; 1 if it cannot be exported, with the reason, or if there
    is no such run; 2 for a wrong option; 3 if it may work later: the service cannot be read, the
    disk is full, the download broke off.
    """
    _check_where(folder, push)
    from tinker_recovery.errors import (
        CheckpointError,
        ExportRefused,
        ExportUnavailable,
        JournalError,
        ServiceUnusable,
        StatusError,
        UsageError,
    )
    from tinker_recovery.journal.database import is_there
    from tinker_recovery.recovery.dry_run import NoSuchRun
    from tinker_recovery.telemetry import redact

    def failed(error: Exception, status: int, how: str = "not exported: ") -> None:
        why = redact(str(error))
        if as_json:
            echo(json.dumps({"exported": False, "target": target, "reason": why}))
        refuse(how + why, status)

    try:
        path = journal_file(journal)
        if journal is not None and not is_there(path):
            raise JournalError(f"there is no journal at {path}")  # noqa: TRY301 - like any other
        kept = demo_with(target) if journal is None and not _knows(path, target) else None
        with folder_or_temporary(folder) as place:
            order = _Order(target, place, push, form, strategy, base, merged, path)
            facts, manifest, published = _export_or_demo(order, kept)
    except NoSuchRun as error:
        refuse(redact(str(error)), NO_SUCH_RUN)
    except UsageError as error:
        refuse(redact(str(error)), WRONG)
    except ServiceUnusable as error:
        refuse_because(error, AGAIN)
    except (StatusError, JournalError, ExportUnavailable) as error:
        failed(error, AGAIN)
    except (CheckpointError, ExportRefused) as error:
        failed(error, NOT_EXPORTED)
    else:
        _show(facts, manifest, folder, published, as_json=as_json)


def _knows(journal: Path, run: str) -> bool:
    from tinker_recovery.journal.database import is_there
    from tinker_recovery.journal.reading import read_run

    return is_there(journal) and read_run(journal, run) is not None


def _check_where(folder: Path | None, push: str | None) -> None:
    if folder is None and push is None:
        raise click.UsageError("give --to DIR, or --push OWNER/NAME, or both")
    if push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
        raise click.BadParameter(f"{push!r} is not of the form owner/name", param_hint="--push")


@contextmanager
def folder_or_temporary(folder: Path | None) -> Iterator[Path]:
    """The folder that was given, or one that is removed afterwards."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tinker-recovery-") as temporary:
        yield Path(temporary)


@dataclass(frozen=True, slots=True)
class _Order:
    target: str
    folder: Path
    push: str | None
    form: Format | None
    strategy: str
    base: Path | None
    merged: Path | None
    journal: Path


def _export_or_demo(
    order: _Order, kept: Path | None
) -> tuple[CheckpointFacts, Manifest, Published | None]:
    """Export it; the run of a demo that was kept only where no service knows one of that name."""
    from tinker_recovery.recovery.dry_run import NoSuchRun

    if kept is None or os.environ.get("TINKER_API_KEY"):
        try:
            return asyncio.run(_export(order))
        except NoSuchRun:
            if kept is None:
                raise
    echo(f"{order.target} is the run that `demo --keep` has kept in {kept}", err=True)
    return asyncio.run(_export(replace(order, journal=journal_file(kept))))


async def _export(order: _Order) -> tuple[CheckpointFacts, Manifest, Published | None]:
    from tinker_recovery.export.choice import choose
    from tinker_recovery.export.exporter import Exporter, ExportProgress
    from tinker_recovery.export.formats import check_format
    from tinker_recovery.export.hub import publish
    from tinker_recovery.export.merge import check_merge, merge
    from tinker_recovery.export.noting import noted
    from tinker_recovery.journal.database import is_there
    from tinker_recovery.policy_settings import policy_from_settings
    from tinker_recovery.service import StatusReader, TinkerBackend
    from tinker_recovery.service.bounded import ReplyLimits
    from tinker_recovery.service.contact import FirstContact

    policy = policy_from_settings()
    form = order.form or ("safetensors" if order.merged else policy.checkpoints.format)
    check_format(form)
    if order.merged is not None:
        if form != "safetensors":
            raise click.UsageError(f"--merge takes the format safetensors, not {form}")
        check_merge(order.merged)
    async with _demo_served(order.journal, order.target):
        backend = TinkerBackend()
        endpoint = await backend.endpoint()
        limits = ReplyLimits.of(policy)
        known = order.journal if await anyio.to_thread.run_sync(is_there, order.journal) else None
        async with StatusReader.by(policy, endpoint, time.time) as reader:
            with FirstContact(endpoint):
                facts = await choose(
                    order.target,
                    backend=backend,
                    reader=reader,
                    journal=known,
                    strategy=order.strategy,
                )
        with _bar() as update:
            async with (
                noted(facts, known, service=endpoint.base_url),
                Exporter(endpoint, reply_limits=limits) as exporter,
            ):
                manifest = await exporter.export(
                    facts, order.folder, form, base=order.base, progress=update
                )
            if order.merged is not None:
                update(ExportProgress("merging"))
                base = str(order.base or manifest.checkpoint.base_model)
                await merge(order.folder, base, order.merged)
            if order.push is None:
                return facts, manifest, None
            update(ExportProgress("publishing"))
            return facts, manifest, await publish(order.folder, manifest, order.push)


@asynccontextmanager
async def _demo_served(journal: Path, run: str) -> AsyncGenerator[None]:
    """What `demo --keep` has stored beside the journal, served again meanwhile.

    What it knows of this machine is of the demo's own server, whatever service the environment
    names.
    """
    root = demo_server(journal.parent)
    if not await anyio.Path(root).is_dir():
        yield
        return
    from urllib.parse import urlsplit

    from tinker_recovery.journal.reading import read_run
    from tinker_recovery.testing import LocalTinkerProcess

    view = await anyio.to_thread.run_sync(read_run, journal, run)
    if view is not None and not is_local(view.service):
        yield  # of another service, in a folder that a demo was kept in as well
        return
    # The same port: by the address of its service the journal knows a run.
    port = 0 if view is None else urlsplit(view.service).port or 0
    try:
        server = LocalTinkerProcess(root, port=port, restart="unloaded")
        await server.start()
    except RuntimeError:
        server = LocalTinkerProcess(root, restart="unloaded")
        await server.start()
    before = dict(os.environ)
    os.environ.update(TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key)
    try:
        yield
    finally:
        await server.stop()
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _bar() -> Iterator[Callable[[ExportProgress], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=plain_console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bars:
        bar = bars.add_task("asking", total=None)

        def update(now: ExportProgress) -> None:
            bars.update(bar, description=now.phase)
            if now.phase == "downloading":
                bars.update(bar, completed=now.done_bytes, total=now.total_bytes)

        yield update


def _as_json(
    facts: CheckpointFacts, manifest: Manifest, folder: Path | None, published: Published | None
) -> dict[str, Any]:
    return {
        "exported": True,
        "run": facts.run,
        "checkpoint": facts.path,
        "step": facts.step,
        "base_model": manifest.checkpoint.base_model,
        "format": manifest.format,
        "folder": None if folder is None else str(folder),
        "digest": manifest.digest,
        "files": {name: size for name, (size, _) in manifest.files.items()},
        "published": None if published is None else asdict(published),
    }


def _show(
    facts: CheckpointFacts,
    manifest: Manifest,
    folder: Path | None,
    published: Published | None,
    *,
    as_json: bool,
) -> None:
    if as_json:
        echo(json.dumps(_as_json(facts, manifest, folder, published)))
        return
    from tinker_recovery.cli.checkpoints.scope import size_text

    step = "its step is not known" if facts.step is None else f"step {facts.step}"
    size = sum(size for size, _ in manifest.files.values())
    echo(f"checkpoint   {facts.path}, {step} of run {facts.run}")
    if folder is not None:
        echo(f"exported     {folder}: {', '.join(manifest.files)} ({size_text(size)})")
    if published is not None:
        how = "was there already" if published.commit is None else f"commit {published.commit[:8]}"
        echo(f"published    {published.url}, {how}")
    where = str(folder or (published and published.repository))
    if manifest.format == "gguf":
        echo(f"in a shell   llama-cli -m BASE.gguf --lora {where}/{next(iter(manifest.files))}")
    else:
        echo(f"in code      PeftModel.from_pretrained(base, {json.dumps(where)})")
    echo(f"base         {manifest.checkpoint.base_model}")
