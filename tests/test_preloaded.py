"""The processes that tests start are processes like any other, wherever they come from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
from loops import STARTED_WITHIN_S, until

SAYS = """
import json, os, sys
print(json.dumps({"args": sys.argv[1:], "folder": os.getcwd(), "parent": os.getppid(),
    "pid": os.getpid(), "name": __name__, "A": os.environ.get("A"), "got": sys.stdin.read(),
    "beside": sys.path[0], "files": os.listdir("/dev/fd"), "sdk": "tinker" in sys.modules}))
print("to stderr", file=sys.stderr)
sys.exit(7)
"""
WAITS = "import time\nprint('up', flush=True)\ntime.sleep(60)"

linux = pytest.mark.skipif(sys.platform != "linux", reason="they are forked on Linux only")


def _written(folder: Path, code: str) -> str:
    file = folder / "script.py"
    file.write_text(code)
    return str(file)


@linux
@pytest.mark.parametrize("new", [False, True], ids=["forked", "new"])
def test_a_process_has_what_it_was_given_and_is_the_tests_own_child(
    tmp_path: Path, *, new: bool
) -> None:
    (there := tmp_path / "there").mkdir()
    command = [sys.executable, _written(tmp_path, SAYS), "--a", "b c"]
    environment = {**os.environ, "A": "b", **({"PYTHONHASHSEED": "1"} if new else {})}
    with subprocess.Popen(  # noqa: S603 - our own script
        command, stdin=-1, stdout=-1, stderr=-1, text=True, cwd=there, env=environment
    ) as process:
        said, errors = process.communicate("in", timeout=STARTED_WITHIN_S)
    assert (process.returncode, errors) == (7, "to stderr\n")
    assert json.loads(said) == {
        "args": ["--a", "b c"],
        "folder": str(there),
        "parent": os.getpid(),
        "pid": process.pid,
        "name": "__main__",
        "A": "b",
        "got": "in",
        "beside": str(tmp_path),
        "files": ["0", "1", "2", "3"],
        "sdk": not new,
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_dies_of_the_signal_it_is_sent(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, _written(tmp_path, WAITS)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:  # noqa: S603 - our own
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=STARTED_WITHIN_S)
    assert process.returncode == -number
    assert errors.endswith("KeyboardInterrupt\n" if number == signal.SIGINT else "")


@linux
async def test_what_is_forked_from_ends_with_the_test_run_however_that_ends(
    tmp_path: Path,
) -> None:
    code = f"""
import os, signal, subprocess, sys
sys.path.insert(0, {str(Path(preloaded.__file__).parent)!r})
import preloaded
preloaded.install()
subprocess.run([sys.executable, {_written(tmp_path, "")!r}], check=True)
from pathlib import Path
print(Path(f"/proc/self/task/{{os.getpid()}}/children").read_text(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(  # noqa: ASYNC221, S603 - our own code
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    (pid,) = done.stdout.split()
    await until(lambda: not Path(f"/proc/{pid}").exists())
    assert done.returncode == -signal.SIGKILL
    assert done.stderr == ""
