"""Python processes that have the SDK and the package imported already when they begin.

Importing them takes longer than most of what a test has a process for. One process with a single
thread does it for each worker of pytest, and from then on forks what a test starts by a path or by
``-m``. What is forked is a process like any other, and a child of the worker's, which waits for it
and signals it itself; it has its own streams, environment, arguments and folder.

Code given with ``-c``, and whatever needs a new interpreter, gets one; ``-I`` demands it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SET_CHILD_SUBREAPER = 36  # of prctl(2): what loses its parent becomes a child of ours
LIMIT = 2**17  # bytes of a command and its environment
IMPORTED = ("anyio._backends._asyncio", "tinker_recovery.cli.demo", "tinker_recovery.testing")
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "OMP_")  # by the interpreter, and by imports
NOT_THEN = ("PYTHONPATH", "PYTHONUNBUFFERED")
NO_CHANGES = [None, None, None, -1, False, -1]  # of who it is, of its umask, session and group

ordinary = subprocess.Popen


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    found = {name for name in environment if name.startswith(READ_AT_START)}
    return {name: environment[name] for name in found - {*NOT_THEN}}


class _Preloader:
    """The process that is forked from, and the way to ask it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._prctl = ctypes.CDLL(None).prctl
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._given = _read_at_start(os.environ)
        with theirs:
            self._process = ordinary(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # A second thread would not be forked: none for OpenBLAS.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        self._socket.recv(64)  # it is ready: no test waits for that

    def fork(self, command: dict[str, Any], streams: Sequence[int]) -> int | None:
        """The id of a new process; None if it takes a new interpreter."""
        message = json.dumps(command).encode()
        alike = _read_at_start(command["env"]) == self._given
        if len(message) > LIMIT or not alike or os.getpid() != self._pid:
            return None
        with self._lock:
            self._prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._socket, [message], streams)
                said = self._socket.recv(64)
            finally:
                self._prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        if not said:
            raise RuntimeError("no process was forked for the test: see stderr")
        return int(said)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


_preloader: list[_Preloader] = []


class _Popen(subprocess.Popen[Any]):
    """As any other, but for where the process comes from."""

    def _execute_child(self, args: Any, *given: Any) -> None:
        _, before, _, pass_fds, cwd, env, _, _, shell, *pipes_and_more = given
        pipes, changes = pipes_and_more[:6], pipes_and_more[7:]
        begins = [*map(os.fspath, args[:2])] if isinstance(args, list | tuple) else []
        by_name = begins[:1] == [sys.executable] and begins[1:] and begins[1][:1] != "-"
        if (by_name or begins == [sys.executable, "-m"]) and (
            not (before or pass_fds or shell) and changes == NO_CHANGES
        ):
            command = {
                "args": [os.fspath(each) for each in args[1:]],
                "cwd": os.fspath(cwd or Path.cwd()),
                "env": dict(os.environ if env is None else env),
            }
            theirs = (pipes[0], pipes[3], pipes[5])
            streams = [own if end == -1 else end for own, end in enumerate(theirs)]
            pid = _preloader[0].fork(command, streams)
            if pid is not None:
                self.pid = pid
                self._child_created = True
                return self._close_pipe_fds(*pipes)  # type: ignore[attr-defined,no-any-return]  # private
        return super()._execute_child(args, *given)  # type: ignore[misc,no-any-return]  # private


def install() -> None:
    """From here on, have processes forked that can be, where there is Linux's prctl(2)."""
    if sys.platform == "linux" and not _preloader:
        _preloader.append(_Preloader())
        subprocess.Popen = _Popen  # type: ignore[misc]  # which anyio and asyncio start with, too


def uninstall() -> None:
    """End what :func:`install` began. It ends by itself if this process dies."""
    if _preloader:
        subprocess.Popen = ordinary  # type: ignore[misc]  # put back
        _preloader.pop().close()


# The process that is forked from.


def _serve(control: socket.socket) -> list[str]:
    """Fork for each message. Returns in each of the forked ones, with the arguments it is given."""
    while True:
        message, streams, _, _ = socket.recv_fds(control, LIMIT, 3)
        if not message:
            os._exit(0)
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0.001)
            command = json.loads(message)
            _become(command, streams)
            os.write(writing, str(os.getpid()).encode())
            control.detach()
            os.closerange(3, 4096)
            return list(command["args"])
        for mine in (writing, *streams):
            os.close(mine)
        # Once the one in between has ended, what it forked is a child of the worker's.
        os.waitpid(between, 0)
        control.send(os.read(reading, 64))
        os.close(reading)


def _become(command: dict[str, Any], streams: Sequence[int]) -> None:
    """Take on what a new process would have been given."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        errors = "backslashreplace" if number == 2 else "strict"
        file = open(number, "w" if number else "r", errors=errors, closefd=False)  # noqa: SIM115 - a number, kept
        file.reconfigure(line_buffering=number == 2 or file.isatty(), write_through=at_once)
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)


def _run(args: list[str]) -> None:
    """Run what the command line says, as the interpreter does; what it raises ends the process."""
    path = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    if args[0] == "-m":
        sys.argv, sys.path[:0] = args[1:], [str(Path.cwd()), *path]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        return
    sys.argv, sys.path[:0] = args, [str(Path(args[0]).resolve().parent), *path]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    main.__file__ = args[0]
    exec(compile(Path(args[0]).read_bytes(), args[0], "exec"), main.__dict__)  # noqa: S102 - our script


if __name__ == "__main__":
    for each in IMPORTED:
        importlib.import_module(each)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which ends this one
    del sys.path[0]
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a thread is not forked with its process"  # noqa: PTH208 - the number is enough
    given = socket.socket(fileno=int(sys.argv[1]))
    given.send(b"ready")
    _run(_serve(given))
