"""The hook of mkdocs: fills in what the pages take from the code, when the site is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from site_pages import filled_in


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's Markdown, before it is rendered."""
    return filled_in(markdown)
