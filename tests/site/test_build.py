"""The site is built, as a reader of the sources builds it, and loads nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from documents import ROOT

LOADS = {"src", "srcset", "data", "poster"}
"""Attributes that have a browser load something; ``href`` does of a link element alone."""

SOUGHT = {
    "lag": "checkpoints/#",
    "Duplicate": "scripts/#",
    "lineage": "glossary/",
    "Hyperparameters": "scripts/#where-a-run-starts",
    "get_tokenizer": "testing/",
}
"""What people have looked for, and the page that answers it."""


class _Loaded(HTMLParser):
    """What a page has a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name in LOADS or (tag == "link" and name == "href")):
                self.addresses.append(value)
            if value and name == "class":
                self.classes |= set(value.split())


@pytest.mark.timeout(300)
def test_the_site_builds_strictly_and_nothing_on_it_is_loaded_from_elsewhere(
    tmp_path: Path,
) -> None:
    built = tmp_path / "site"
    done = subprocess.run(  # noqa: S603 - our own pages
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(built)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = sorted(built.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = _Loaded()
        loaded.feed(text)
        elsewhere = [each for each in loaded.addresses if re.match(r"(?:[a-z]+:)?//", each)]
        assert elsewhere == [], page
        # The theme's script would load these from a CDN; the policy keeps a browser from it.
        assert "mermaid" not in loaded.classes, page
        assert "Content-Security-Policy" in text, page
    found = json.loads((built / "search" / "search_index.json").read_text())["docs"]
    for word, place in SOUGHT.items():
        places = {each["location"] for each in found if word in each["text"] + each["title"]}
        assert any(each.startswith(place) for each in places), (word, places)
        assert "<!-- generated" not in text, page
        assert "<em>On the site" not in text, page
        assert not re.search(r":(class|func|meth|mod|data|attr|exc):`", text), page
    for sheet in built.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text()), sheet
