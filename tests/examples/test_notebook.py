"""The notebook, run by a real kernel; and what a notebook shows of a Supervisor."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from loops import MODEL, quick, train

from tinker_recovery import Attempt, Supervisor
from tinker_recovery.testing import LocalTinker

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"

EXECUTE = """
import sys, nbclient, nbformat
read, written = sys.argv[1:]
notebook = nbformat.read(read, as_version=4)
nbclient.NotebookClient(notebook, timeout=50, kernel_name="python3").execute()
nbformat.write(notebook, written)
"""


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel")),
    reason='needs a kernel: pip install "tinker-recovery[dev]"',
)
def test_every_cell_of_the_notebook_runs_and_shows_the_run_and_its_recovery(tmp_path: Path) -> None:
    written = tmp_path / "written.ipynb"
    places = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(written)],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        env={**os.environ, **{name: str(tmp_path / name) for name in places}},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads(written.read_text())["cells"]
    shown = [
        "".join(output["data"]["text/html"])
        for cell in cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    supervisor, run, recovery = shown
    assert "Supervisor, " in supervisor
    for each in ("Run notebook", "<td", ">over<", "request_failed", ">40<"):
        assert each in run
    assert "Recovery of run notebook" in recovery
    assert "step-00000020" in recovery


def test_the_notebook_is_kept_without_what_it_has_shown() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


async def test_what_a_notebook_shows_is_escaped_and_holds_no_secret(local: LocalTinker) -> None:
    async def reports(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        attempt.report(loss=0.25)

    supervisor = Supervisor(quick())
    assert "Supervisor, not entered" in supervisor._repr_html_()
    local.poison(at_step=2)
    async with supervisor:
        await supervisor.run(reports, base_model=MODEL, name="<b>run</b>&\x1b[31m")
        assert "Supervisor, entered" in supervisor._repr_html_()
    (run,) = supervisor.runs
    (recovery,) = run.recoveries
    error = RuntimeError(f"<script>alert(1)</script> with {local.api_key}")
    failed = replace(recovery, fault=replace(recovery.fault, error=error))
    everything = [each._repr_html_() for each in (supervisor, run, recovery, failed)]
    assert "Supervisor, left" in everything[0]
    for each in everything:
        assert "&lt;b&gt;run&lt;/b&gt;&amp;" in each
        assert "<b>run" not in each
        assert "<script" not in each
        assert local.api_key not in each
        assert "\x1b" not in each
    assert ">0.25<" in everything[0]
    assert ">request_failed<" in everything[1]
    assert "none: the run started over" in everything[2]
    assert "&lt;script&gt;alert(1)&lt;/script&gt; with ***" in everything[3]
