"""A PostgreSQL server of one's own, where the machine has one; tests use it as well."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SYSTEM_USER = "postgres"
"""Who runs the server if this runs as root, which it refuses to."""


def folder() -> Path | None:
    """Where its programs are: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    there = [] if found is None else [Path(found).resolve().parent]
    there += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in there if (each / "postgres").exists()), None)


def why_not() -> str:
    """Why there can be none here; empty if there can."""
    if folder() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            return f"this runs as root, and there is no user {SYSTEM_USER} to run a server as"
    return ""


@contextmanager
def served(password: str) -> Iterator[str]:
    """The URL of an empty database on a server that is stopped in the end."""
    programs = folder()
    if programs is None:
        raise RuntimeError(why_not())
    as_root = os.geteuid() == 0
    user = SYSTEM_USER if as_root else getpass.getuser()
    with tempfile.TemporaryDirectory(prefix="postgres-") as scratch:
        data, secret = Path(scratch) / "data", Path(scratch) / "password"
        secret.write_text(password)
        if as_root:
            entry = pwd.getpwnam(user)
            for each in (Path(scratch), secret):
                os.chown(each, entry.pw_uid, entry.pw_gid)

        def run(program: str, *arguments: str) -> None:
            given = [str(programs / program), *arguments]
            if as_root:
                given = ["runuser", "-u", user, "--", *given]
            subprocess.run(  # noqa: S603 - our own command
                given,
                check=True,
                stdout=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                cwd=scratch,
                timeout=120,
            )

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = ["-D", str(data)]
        run(
            *("initdb", *where, "--auth=scram-sha-256", f"--pwfile={secret}"),
            *("--username=jobs", "--no-sync"),
        )
        options = f"-h 127.0.0.1 -p {port} -k {scratch} -F"
        run("pg_ctl", *where, "-w", "-t", "100", "-l", f"{scratch}/log", "-o", options, "start")
        try:
            yield f"postgresql://jobs:{password}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", *where, "-w", "-m", "immediate", "stop")
