"""What is kept to be recalled: bounded, for its owner alone, and never a reason to fail."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tinker_recovery.journal.recalled import Kept, Recalled, forget_recalled

LARGE = 10**6


def kept(step: int, text: str = "text") -> Kept:
    return Kept("attempt", step, step, text)


@pytest.fixture(params=["on disk", "in memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "recalled" / "line" if request.param == "on disk" else None


def test_what_is_kept_is_found_and_what_is_not_is_not(folder: Path | None) -> None:
    values = Recalled(folder, limit=LARGE)
    assert values.get("one") is None
    assert values.put("one", kept(3, "grüße\ud800\n"))
    assert values.get("one") == kept(3, "grüße\ud800\n")
    values.put("one", kept(3, "newer"))
    assert values.get("one") == kept(3, "newer")
    values.clear()
    assert values.get("one") is None


def test_beyond_the_limit_what_was_kept_first_is_dropped(folder: Path | None) -> None:
    values = Recalled(folder, limit=1000)
    # A replay from step 1: what the attempt before it kept goes first.
    for step in (7, 8, 1, 2):
        values.put(str(step), kept(step, "x" * 250))
    assert [values.get(key) is not None for key in ("7", "8", "1", "2")] == [
        False,
        True,
        True,
        True,
    ]


def test_what_is_larger_than_the_limit_is_not_kept_and_drops_nothing(
    folder: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    values = Recalled(folder, limit=1000)
    values.put("small", kept(1))
    assert not values.put("large", kept(2, "x" * 2000))
    assert values.get("small") == kept(1)
    assert "recall_bytes=1000" in caplog.text
    assert not Recalled(folder, limit=0).put("small", kept(1))


def test_what_no_recovery_comes_back_to_is_dropped(folder: Path | None) -> None:
    values = Recalled(folder, limit=LARGE)
    for step in range(4):
        values.put(str(step), kept(step))
    values.drop_below(2)
    assert [values.get(str(step)) is None for step in range(4)] == [True, True, False, False]


def test_another_process_finds_it_with_its_order(tmp_path: Path) -> None:
    Recalled(tmp_path / "line", limit=LARGE).put("9", kept(9, "x" * 250))
    values = Recalled(tmp_path / "line", limit=1000)
    for step in (1, 2, 3):
        values.put(str(step), kept(step, "x" * 250))
    assert values.get("9") is None
    assert values.get("1") == kept(1, "x" * 250)


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    Recalled(tmp_path / "line", limit=LARGE).put("one", kept(1))
    (file,) = (tmp_path / "line").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [b"", b"other", None])
def test_a_damaged_file_is_as_one_that_is_not_there(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    values = Recalled(tmp_path / "line", limit=LARGE)
    values.put("one", kept(1))
    (file,) = (tmp_path / "line").iterdir()
    data = file.read_bytes()
    file.write_bytes(data[:-1] if damage is None else damage)
    assert values.get("one") is None
    assert "is made again" in caplog.text
    values.put("one", kept(1))
    assert values.get("one") == kept(1)


def test_a_file_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "writing.123").write_bytes(b"half")
    assert Recalled(tmp_path / "line", limit=LARGE).get("one") is None
    assert not list((tmp_path / "line").iterdir())


def test_a_disk_that_takes_nothing_stops_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "line").write_text("a file where the folder should be")
    values = Recalled(tmp_path / "line", limit=LARGE)
    assert not values.put("one", kept(1))
    assert values.get("one") is None
    assert "training continues" in caplog.text


def test_a_run_that_is_abandoned_leaves_nothing(tmp_path: Path) -> None:
    values = Recalled(tmp_path / "recalled" / "line", limit=LARGE)
    values.put("one", kept(1))
    forget_recalled(tmp_path / "journal.sqlite3", "line")
    assert not list((tmp_path / "recalled").iterdir())
