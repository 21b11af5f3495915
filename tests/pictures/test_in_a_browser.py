"""The page in a real browser: nothing fails in it, nothing sticks out, and its script works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from poisoned_run import read_back
from two_hundred import leave_a_long_run

from tinker_recovery.journal.reading import read_events, read_run
from tinker_recovery.report import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

LOOK = """<!DOCTYPE html><meta charset="utf-8"><pre></pre>
<iframe src="page.html" width="420" height="900"></iframe>
<script>
addEventListener('load', () => {
  const page = document.querySelector('iframe').contentDocument;
  const labelled = (svg) => (svg.getAttribute('aria-labelledby') || '').split(' ')
    .map((id) => page.getElementById(id)?.textContent.length || 0).every((length) => length > 9);
  const slider = page.querySelector('.readout input');
  slider.value = 3;
  slider.dispatchEvent(new Event('input'));
  document.querySelector('pre').textContent = JSON.stringify({
    width: page.documentElement.scrollWidth,
    charts: [...page.querySelectorAll('svg:not(svg svg)')].map(labelled),
    drawn: [...page.querySelectorAll('svg:not(svg svg)')].every((svg) => svg.clientWidth > 200),
    readout: page.querySelector('.readout output').textContent,
    scales: [...page.querySelectorAll('input[name=scale]')].map((input) => {
      input.click();
      return [...page.querySelectorAll('.scaled')]
        .filter((each) => page.defaultView.getComputedStyle(each).display !== 'none')
        .map((each) => each.classList[1]).join();
    }),
    cut: [...page.querySelectorAll('.scrolls, td, tbody th')]
      .filter((each) => each.scrollWidth > each.clientWidth + 1).length,
    marks: [...page.querySelectorAll('svg.loss .mark')]
      .filter((each) => page.defaultView.getComputedStyle(each).display !== 'none').length,
    focusable: page.querySelectorAll('a, input, summary, [tabindex="0"]').length,
  });
});
</script>"""


@pytest.fixture(params=["poisoned", "long"])
def page(request: pytest.FixtureRequest, written: Path, tmp_path: Path) -> str:
    """The page of a short run, and of one of 5,000 steps and 20 recoveries."""
    if request.param == "poisoned":
        run, events = read_back(written)
        return render(run, events, now=run.updated)
    file = leave_a_long_run(tmp_path)
    long = read_run(file, "long")
    assert long is not None
    return render(long, read_events(file, "long"), now=long.updated)


@pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on PATH")
def test_on_a_narrow_screen_nothing_sticks_out_every_chart_is_named_and_nothing_is_refused(
    page: str, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "look.html").write_text(LOOK)
    assert CHROMIUM is not None
    done = subprocess.run(  # noqa: S603 - the browser, on a page of our own
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            # Or the page in the frame is of another origin than the one that looks at it.
            *("--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"),
            f"file://{tmp_path / 'look.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r"<pre>(.*?)</pre>", done.stdout)
    assert found is not None
    said = json.loads(unescape(found.group(1)))
    assert said["width"] <= 420
    assert said["charts"] == [True, True, True]
    assert said["drawn"]
    assert re.fullmatch(r"step \d+: loss \S+", said["readout"]), "its script runs, and no other may"
    assert said["focusable"] >= 10
    assert said["cut"] == 0, "cards, of which nothing is cut off"
    assert said["scales"] in ([], ["usual", "whole", "log"])
    assert 2 <= said["marks"] <= 8
