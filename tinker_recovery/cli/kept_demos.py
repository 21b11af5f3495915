"""Where ``demo --keep`` has kept its runs, so that a later command finds them by name alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from urllib.parse import urlsplit

FILE = "demos"
"""Its name, beside the journal: a folder a line, the newest last."""


def note_demo(folder: Path) -> None:
    """Remember a folder; where that cannot be written, ``--journal`` has to be given."""
    from tinker_recovery.journal.journal import default_path
    from tinker_recovery.journal.private_files import create_private

    file = default_path().with_name(FILE)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            os.close(create_private(file))
        with file.open("a") as out:
            out.write(f"{folder.absolute()}\n")


def demo_with(run: str) -> Path | None:
    """The newest folder that is still there and whose journal has a run of that name."""
    from tinker_recovery.errors import JournalError
    from tinker_recovery.journal.journal import JOURNAL_FILE, default_path
    from tinker_recovery.journal.reading import read_run

    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in reversed(default_path().with_name(FILE).read_text().splitlines()):
            with contextlib.suppress(JournalError):
                view = read_run(Path(line) / JOURNAL_FILE, run)
                if view is not None and is_local(view.service):
                    return Path(line)
    return None


def is_local(service: str) -> bool:
    """Whether a service is on this machine, as that of a demo is."""
    return urlsplit(service).hostname in {"127.0.0.1", "localhost", "::1"}
