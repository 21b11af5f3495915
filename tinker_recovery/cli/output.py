"""Where a command writes a file that the user named: beside and renamed, or through to a pipe."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import Literal

STANDARD_OUTPUT = Path("-")


def goes_to_stdout(output: Path) -> bool:
    """Whether it is ``-``, or a link to standard output such as ``/dev/stdout``."""
    if output == STANDARD_OUTPUT:
        return True
    try:
        return output.is_symlink() and os.path.samestat(output.stat(), os.fstat(1))
    except OSError:
        return False


def check_open(stream: Literal["stdin", "stdout"]) -> None:
    """Refuse a standard stream that was closed when the process began.

    Raises:
        OSError: It was.
    """
    if getattr(sys, f"__{stream}__") is None:
        raise OSError(errno.EBADF, "it is closed")


def write_whole(output: Path, text: str) -> None:
    """Write a text: all or nothing to a regular file, and through to anything else.

    A new file is for its owner alone; one that is replaced keeps its rights.

    Raises:
        OSError: It cannot be written, or its folder is somebody else's.
    """
    if goes_to_stdout(output):
        check_open("stdout")
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        there = output.stat()
    except FileNotFoundError:
        there = None
    if there is not None and not stat.S_ISREG(there.st_mode):
        with os.fdopen(os.open(output, os.O_WRONLY), "w", encoding="utf-8") as file:
            file.write(text)
        return
    _replace(output, text, there)


def _replace(output: Path, text: str, there: os.stat_result | None) -> None:
    from tinker_recovery.journal.private_files import check_folder, create_private

    check_folder(output.parent)
    part = output.with_name(f".{output.name}.{secrets.token_hex(8)}.part")
    descriptor = create_private(part)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            if there is not None and there.st_uid == os.geteuid():
                os.fchmod(descriptor, stat.S_IMODE(there.st_mode))
        part.replace(output)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
