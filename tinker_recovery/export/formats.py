"""The formats of an export: which files each has, and how they are made of an adapter's folder."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import anyio

from tinker_recovery.checkpoint_policy import Format
from tinker_recovery.errors import ExportRefused, ExportUnavailable
from tinker_recovery.export.adapter import CONFIG, WEIGHTS, Adapter
from tinker_recovery.export.gguf_file import GGUF, write_gguf

PYTORCH = "adapter_model.bin"

_FILES: dict[Format, tuple[str, ...]] = {
    "safetensors": (CONFIG, WEIGHTS),
    "pytorch": (CONFIG, PYTORCH),
    "gguf": (GGUF,),
}
_LAST_LINES = 5

_TO_PYTORCH = """\
import sys
import torch
from safetensors.torch import load_file
torch.save(load_file(sys.argv[1]), sys.argv[2])
"""


def check_format(form: Format) -> None:
    """Refuse a format whose package is missing, before anything is asked of the service.

    Raises:
        ExportRefused: It is.
    """
    needed = {"pytorch": "torch", "gguf": "gguf"}.get(form)
    if needed and importlib.util.find_spec(needed) is None:
        raise ExportRefused(
            f"format={form!r} needs the package {needed}, which is not installed: pip install "
            f'"tinker-recovery[{needed}]"'
        )


def files_of(form: Format) -> tuple[str, ...]:
    """The names of the files of a format."""
    return _FILES[form]


async def convert(adapter: Adapter, form: Format, *, base: Path | None = None) -> None:
    """Add the files of a format to an adapter's folder.

    Args:
        adapter: It has those of ``safetensors``.
        form: The format.
        base: A folder with the base model's ``config.json``, for ``gguf``.

    Raises:
        ExportRefused: The adapter does not fit the format, or a package is missing.
    """
    if form == "gguf":
        await write_gguf(adapter, adapter.folder / GGUF, base=base)
    elif form == "pytorch":
        check_format(form)
        # In a process of its own: torch is large, and what it does cannot be cancelled.
        done = await anyio.run_process(
            [
                sys.executable,
                "-c",
                _TO_PYTORCH,
                str(adapter.weights),
                str(adapter.folder / PYTORCH),
            ],
            check=False,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            said = done.stdout.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
            raise ExportUnavailable(f"{PYTORCH} could not be written: {' / '.join(said)}")
