"""A webhook on loopback: keeps what it is sent, and answers, or hangs, as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "a-path-that-is-a-secret"  # noqa: S105 - made up


@dataclass
class Hook:
    """Where it is, and what it was sent."""

    port: int = 0
    status: int = 200
    go_on: threading.Event = field(default_factory=threading.Event)
    """Set unless requests are to hang."""
    paths: list[str] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)

    @property
    def apprise_url(self) -> str:
        """Its address for apprise, with a secret in it."""
        return f"json://127.0.0.1:{self.port}/{SECRET}"

    @property
    def texts(self) -> str:
        """Every title and message so far."""
        return "\n".join(f"{each['title']}\n{each['message']}" for each in self.sent)


@contextmanager
def webhook() -> Iterator[Hook]:
    """A webhook that lives in threads of its own."""
    hook = Hook()
    hook.go_on.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hook.paths.append(self.path)
            self._answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.paths.append(self.path)
            hook.sent.append(json.loads(body))
            self._answer()

        def _answer(self) -> None:
            hook.go_on.wait(30.0)
            self.send_response(hook.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # joined on the way out

        def handle_error(self, *_: object) -> None:
            """A client that has given up is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    hook.port = server.server_address[1]
    serving = threading.Thread(target=server.serve_forever, args=(0.01,), name="hook")
    serving.start()
    try:
        yield hook
    finally:
        hook.go_on.set()
        server.shutdown()
        serving.join()
        server.server_close()
