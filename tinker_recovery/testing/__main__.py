"""``python -m tinker_recovery.testing``: the server alone, for :class:`LocalTinkerProcess`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

from tinker_recovery.testing._server import serve

parser = argparse.ArgumentParser(
    prog="python -m tinker_recovery.testing",
    description="Serve a local Tinker until SIGTERM; SIGUSR1 ends an outage. Prints its base URL "
    "once it is ready. LOCAL_TINKER_OPTIONS may hold a JSON object of further options, those of "
    "tinker_recovery.testing.Options.",
)
parser.add_argument("--root", type=Path, help="folder for runs and checkpoints")
parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
parser.add_argument(
    "--until-stdin-closes", action="store_true", help="stop when the other end of stdin is closed"
)


def _watch_stdin() -> None:
    # Not sys.stdin: a thread that reads holds its lock, which aborts the interpreter's exit.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _print(base_url: str) -> None:
    sys.stdout.write(base_url + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    given = parser.parse_args()
    if given.until_stdin_closes:
        threading.Thread(target=_watch_stdin, daemon=True).start()
    serve(
        root=given.root,
        port=given.port,
        ready=_print,
        **json.loads(os.environ.get("LOCAL_TINKER_OPTIONS", "{}")),
    )
