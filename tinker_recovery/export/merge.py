"""Merging an adapter into its base model, by ``tinker_cookbook``; never without being asked.

It downloads the whole base model, unless that is a folder here.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import anyio

from tinker_recovery.errors import ExportRefused, ExportUnavailable
from tinker_recovery.telemetry import redact

_LAST_LINES = 5

_MERGE = """\
import sys
from tinker_cookbook.weights import build_hf_model
build_hf_model(base_model=sys.argv[1], adapter_path=sys.argv[2], output_path=sys.argv[3])
"""


def check_merge(to: Path) -> None:
    """Refuse what cannot work, before anything is asked of the service.

    Raises:
        ExportRefused: tinker_cookbook is missing, or something is at ``to``.
    """
    if importlib.util.find_spec("tinker_cookbook") is None:
        raise ExportRefused(
            "merging is done by tinker_cookbook.weights, which is not installed: see "
            "docs/cookbook.md"
        )
    if to.exists():
        raise ExportRefused(f"{to} exists: merge into a folder that does not")


async def merge(adapter: Path, base_model: str, to: Path) -> None:
    """Merge an adapter into its base model.

    Args:
        adapter: A folder with ``adapter_model.safetensors``.
        base_model: A folder, or a name of the hub, which is downloaded.
        to: The folder of the merged model.

    Raises:
        ExportRefused: As :func:`check_merge`.
        ExportUnavailable: It failed; the last lines it printed say why.
    """
    check_merge(to)
    done = await anyio.run_process(
        [sys.executable, "-c", _MERGE, base_model, str(adapter), str(to)],
        check=False,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        raise ExportUnavailable(redact(f"not merged: {' / '.join(said)}"))
