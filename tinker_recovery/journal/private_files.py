"""Files for their owner alone, in folders that are not somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

MODE = 0o600

_OVERFLOW_UID = 65534
"""What systems show in place of an owner that they do not know: in containers, on network disks."""


def check_folder(folder: Path) -> None:
    """Refuse a folder of somebody else: not of this user, nor of root.

    Raises:
        PermissionError: It is one: its owner could put other files in the place of ours.
        OSError: It is not there.
    """
    if not hasattr(os, "geteuid"):  # pragma: no cover - a system without owners
        return
    owner, us = folder.stat().st_uid, os.geteuid()
    if owner not in (us, 0, _OVERFLOW_UID):
        raise PermissionError(
            f"the folder {folder} belongs to user {owner}, and this process runs as user {us}: its "
            "owner could read or replace what is written there"
        )


def create_private(path: Path) -> int:
    """A new file that its owner alone may read and write, whatever the umask; its descriptor.

    Raises:
        FileExistsError: There is something of that name, be it a link that leads nowhere.
        OSError: It cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, MODE)
    os.fchmod(descriptor, MODE)
    return descriptor
