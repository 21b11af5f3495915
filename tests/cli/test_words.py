"""No word is cut in the middle, in a terminal of any width."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tinker_recovery.cli.words import cut, say, wrapped

SAID = (
    "12:45:32  recovery.detected  silence at step 26: submitted work made no progress within "
    "stall_after_s, and the service gave no reason to wait"
)
PATH = "tinker://session-6024084f725f:train:0/weights/step-00000060-c5500ba6-f791b6fd93f05cb0"


def _printed(text: str, *, width: int, terminal: bool) -> list[str]:
    file = io.StringIO()
    say(Console(file=file, width=width, force_terminal=terminal, color_system=None), text)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80])
def test_a_line_is_wrapped_between_words_in_a_terminal(width: int) -> None:
    lines = _printed(SAID, width=width, terminal=True)
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == " ".join(SAID.split())
    assert all(each.startswith("    ") for each in lines[1:])
    assert _printed(SAID, width=width, terminal=False) == [SAID]


def test_a_path_longer_than_the_terminal_stays_whole() -> None:
    said = f"7 checkpoints, the newest {PATH}"
    assert _printed(said, width=60, terminal=True) == ["7 checkpoints, the newest", f"    {PATH}"]


@given(st.text(st.sampled_from("ab 漢\n"), max_size=80), st.integers(6, 30))
def test_wrapping_keeps_every_word(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert " ".join(lines).split() == text.split()
    assert all(cell_len(each) <= width or len(each.split()) == 1 for each in lines)


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("reads as it is", 14, "reads as it is"),
        ("recovered: the loop runs again", 24, "recovered: the loop…"),
        ("saved step-0000000000000000000000", 20, "saved step-00000000…"),
        ("a漢漢漢漢漢", 6, "a漢漢…"),
    ],
)
def test_a_line_is_cut_at_the_end_of_a_word(text: str, width: int, shown: str) -> None:
    line = Text(text)
    cut(line, width)
    assert line.plain.rstrip() == shown
    assert line.cell_len <= width
