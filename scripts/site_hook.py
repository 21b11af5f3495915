"""The hook of mkdocs: fills in what the pages take from the code, when the site is built."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from site_pages import DOCS, ROOT, filled_in

_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A page's Markdown, before it is rendered."""
    folder = (DOCS / page.file.src_uri).parent

    def within(found: re.Match[str]) -> str:
        target = (folder / found[2]).resolve()
        if target.is_relative_to(DOCS) or not target.exists():
            return found[0]
        # A file of the repository that is not on the site: its name says where it is.
        name = f"`{target.relative_to(ROOT)}`"
        return name if found[1].strip("`") == name.strip("`") else f"{found[1]} ({name})"

    return _LINK.sub(within, filled_in(markdown))
