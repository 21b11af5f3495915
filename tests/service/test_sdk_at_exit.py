"""How a process ends while the SDK's thread is at work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest

from tinker_recovery.testing import LocalTinker

PROGRAM = """
import asyncio, atexit, sys, threading, time

import tinker
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from tinker_recovery import Supervisor
from tinker_recovery.service import sdk_at_exit

MODEL = "Qwen/Qwen3-8B"
TOKENS = tinker.TensorData(data=[1, 2, 3], dtype="int64")
BATCH = [
    tinker.Datum(
        model_input=tinker.ModelInput.from_ints([0, 1, 2]),
        loss_fn_inputs={"target_tokens": TOKENS},
    )
]
ends, exports = threading.Event(), threading.Event()


class Exports(SpanProcessor):
    # What the HTTP library of the SDK, which is written in Rust, calls in the SDK's thread.
    def on_end(self, span):
        if ends.is_set() and threading.current_thread() is not threading.main_thread():
            exports.set()
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                time.sleep(0.0005)  # each time it takes the interpreter's lock again


def use_the_sdk():
    print("at exit:", client.get_info().model_id == client.model_id, flush=True)


async def train(attempt):
    forward = attempt.client.forward_backward(BATCH, "cross_entropy")
    await attempt.client.optim_step(tinker.AdamParams(learning_rate=1e-3))
    await forward


async def main():
    async with Supervisor() as supervisor:
        await supervisor.run(train, base_model=MODEL, name="run")


provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(Exports())
trace.set_tracer_provider(provider)
if "earlier" in sys.argv:
    atexit.register(use_the_sdk)
    sdk_at_exit.REST_S = 0.2
asyncio.run(main())
client = tinker.ServiceClient().create_lora_training_client(base_model=MODEL, rank=8).result()
if "earlier" not in sys.argv:
    ends.set()
    client.forward_backward(BATCH, "cross_entropy")
    exports.wait()
print("the last line", flush=True)
"""


async def _ends(tmp_path: Path, *arguments: str, **env: str) -> tuple[int, str]:
    """The exit status and the output of the program."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    async with LocalTinker() as server:  # the program leaves its session open there
        server_env = {"TINKER_BASE_URL": server.base_url, "TINKER_API_KEY": server.api_key}
        ended = await anyio.to_thread.run_sync(
            lambda: subprocess.run(  # noqa: S603 - our own program
                [sys.executable, script, *arguments],
                env={**os.environ, **server_env, **env},
                capture_output=True,
                text=True,
                check=False,
                timeout=40,
            )
        )
    return ended.returncode, ended.stdout + ended.stderr


async def test_a_program_ends_well_while_the_sdk_is_within_its_http_library(
    tmp_path: Path,
) -> None:
    status, said = await _ends(tmp_path)
    assert "the last line" in said
    assert status == 0, said


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="such threads hang instead, from 3.14 on")
async def test_the_sdk_by_itself_aborts_such_a_program(tmp_path: Path) -> None:
    """Once this fails, the workaround has done its work and can go."""
    status, said = await _ends(tmp_path, TINKER_RECOVERY_SDK_WORKAROUNDS="0")
    assert "the last line" in said
    assert status == -6, said


async def test_what_was_to_be_done_at_exit_before_a_supervisor_was_made_can_still_use_the_sdk(
    tmp_path: Path,
) -> None:
    status, said = await _ends(tmp_path, "earlier")
    assert "at exit: True" in said
    assert status == 0, said
