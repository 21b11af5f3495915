"""Publishing: an exported folder as one commit of a repository of a hub."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio

from tinker_recovery.errors import ExportRefused, ExportUnavailable
from tinker_recovery.export.card import model_card
from tinker_recovery.export.manifest import Manifest
from tinker_recovery.telemetry.redaction import hide_environment, redact

UPLOAD_S = 6 * 3600.0
"""How long an upload may take, in seconds."""

_LAST_LINES = 3
_MOST_IN_A_NAME = 80


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a folder.

    Attributes:
        repository: ``owner/name``.
        url: Its page.
        commit: The commit that was made; None if the repository held the folder already.
    """

    repository: str
    url: str
    commit: str | None


def repository_of(push: str | bool, run: str) -> str:  # noqa: FBT001 - as the policy has it
    """The repository that ``push_to_hub`` means for a run; without an owner, the token's own."""
    if isinstance(push, str):
        return push
    name = re.sub(r"[^\w.-]+|\.{2,}|-{2,}", "-", run, flags=re.ASCII).strip("-._")
    return name[:_MOST_IN_A_NAME] or "adapter"


async def publish(
    folder: Path,
    manifest: Manifest,
    repository: str,
    *,
    private: bool = True,
    deadline_s: float = UPLOAD_S,
) -> Published:
    """Publish an exported folder; done again, it changes nothing.

    Cancellable at any point: the process that uploads is ended.

    Args:
        folder: What to publish; nothing is written there.
        manifest: Its manifest.
        repository: ``owner/name``, or a name of the token's owner; made if it does not exist.
        private: Whether it is made for its owner alone.
        deadline_s: How long it may take.

    Raises:
        ExportRefused: The repository is another run's, or the hub refuses.
        ExportUnavailable: The hub is out of reach, or has no room.
    """
    hide_environment()
    of = manifest.checkpoint
    step = of.path if of.step is None else f"step {of.step}"
    order = {
        "folder": str(folder),
        "card": model_card(manifest),
        "manifest": json.dumps(asdict(manifest)),
        "repository": repository,
        "private": private,
        "title": f"{step} of run {of.run}",
        "description": f"lineage: {of.lineage or '-'}\ntinker_path: {of.path}\n"
        f"digest: {manifest.digest}\n",
    }
    try:
        with anyio.fail_after(deadline_s):
            done = await anyio.run_process(
                [sys.executable, "-m", "tinker_recovery.export.upload"],
                input=json.dumps(order).encode(),
                check=False,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
    except TimeoutError:
        raise ExportUnavailable(f"publishing {of.path} took longer than {deadline_s:g} s") from None
    try:
        reply = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stderr.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        raise ExportUnavailable(
            redact(f"the upload ended with status {done.returncode}: {' / '.join(said)}")
        ) from None
    if "refused" in reply:
        raise ExportRefused(redact(reply["refused"]))
    if "unavailable" in reply:
        raise ExportUnavailable(redact(reply["unavailable"]))
    return Published(reply["repository"], reply["url"], reply["commit"])
