"""What is written is on the disk before anything says that it is: also a power cut is survived."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP})
"""Of file systems, most over a network, that cannot sync this kind of file."""


def write_whole(path: Path, text: str) -> None:
    """Write a file all or nothing: what is there by this name was written to its end.

    Raises:
        OSError: As by :func:`sync`, or it cannot be written; what was there before still is.
    """
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text)
    sync(temporary)
    temporary.replace(path)


def sync(path: Path) -> None:
    """Have a file's content, or which names a folder has, on the disk. Blocks until it is.

    Raises:
        OSError: It is not there, or could not be written: some report only here that they are full.
    """
    if path.is_dir() and os.name == "nt":
        return  # there a folder cannot be opened
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(file)
