"""Notes on checkpoints: real files, real processes killed in the middle of a write."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from loops import script

from tinker_recovery import Supervisor
from tinker_recovery.errors import JournalError, UsageError
from tinker_recovery.journal import STATE_FOLDER, Journal, Notes, default_path, journal_path
from tinker_recovery.testing import LocalTinker

SERVICE = "http://127.0.0.1:1"
PATH = "tinker://run/weights/step-5"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "journal.sqlite3"


@pytest.fixture
def journal(file: Path) -> Iterator[Journal]:
    with Journal(file, service=SERVICE) as journal:
        yield journal


def _again(file: Path, service: str = SERVICE) -> Notes:
    with Journal(file, service=service) as journal:
        return journal.notes()


def test_what_is_noted_is_there_for_the_next_process(journal: Journal, file: Path) -> None:
    journal.pin(PATH, "the paper's")
    journal.mark_bad("tinker://run/weights/bad", "it holds NaN")
    journal.write_deletion("tinker://run/weights/old", "a line")
    journal.write_deletion("tinker://run/weights/old", "a newer line")
    assert _again(file) == Notes(
        pinned={PATH: "the paper's"},
        bad={"tinker://run/weights/bad": "it holds NaN"},
        deletions={"tinker://run/weights/old": "a newer line"},
        sizes={},
        files={},
    )


def test_only_the_first_size_and_checksum_noted_are_kept(journal: Journal) -> None:
    journal.note_sizes({PATH: 10})
    journal.note_sizes({PATH: 11, "tinker://run/weights/b": 5})
    journal.note_files(PATH, "first")
    journal.note_files(PATH, "second")
    notes = journal.notes()
    assert notes.sizes == {PATH: 10, "tinker://run/weights/b": 5}
    assert notes.files == {PATH: "first"}


def test_a_pin_and_a_bad_mark_can_be_taken_back_once(journal: Journal) -> None:
    journal.pin(PATH)
    journal.mark_bad(PATH, "bad")
    assert (journal.unpin(PATH), journal.unpin(PATH)) == (True, False)
    assert (journal.clear_bad(PATH), journal.clear_bad(PATH)) == (True, False)


def test_notes_on_deleted_checkpoints_are_removed(journal: Journal) -> None:
    journal.pin(PATH)
    journal.note_sizes({PATH: 10})
    journal.forget([PATH])
    assert journal.notes() == Notes({}, {}, {}, {}, {})


def test_notes_of_several_services_in_one_file_are_separate(journal: Journal, file: Path) -> None:
    journal.pin(PATH)
    assert _again(file, "http://127.0.0.1:2").pinned == {}


def test_several_threads_and_processes_write_at_once(journal: Journal, file: Path) -> None:
    def write(name: str) -> None:
        with Journal(file, service=SERVICE) as other:
            for number in range(10):
                other.pin(f"tinker://run/weights/{name}-{number}")
                journal.pin(f"tinker://run/weights/shared-{name}-{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, "abcd"))
    assert len(_again(file).pinned) == 2 * 4 * 10


def test_a_process_killed_while_it_writes_leaves_a_journal_that_opens(
    file: Path, tmp_path: Path
) -> None:
    program = (
        "import itertools, pathlib, sys\n"
        "from tinker_recovery.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]), service=sys.argv[2])\n"
        "for number in itertools.count():\n"
        "    journal.pin(f'tinker://run/weights/{number}')\n"
        "    print(number, flush=True)\n"
    )
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, script(tmp_path, program), str(file), SERVICE],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
    pinned = _again(file).pinned
    assert {f"tinker://run/weights/{number}" for number in acknowledged} <= pinned.keys()


def test_a_newer_schema_is_refused_and_says_what_to_do(journal: Journal, file: Path) -> None:
    journal.pin(PATH)
    journal.close()
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(JournalError, match=r"schema 99.*install a newer one"):
        _again(file)


def test_a_file_that_is_not_a_journal_gives_an_error_that_names_it(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"not a database at all" * 100)
    with pytest.raises(JournalError, match=r"journal\.sqlite3 cannot be used.*another folder"):
        _again(file)
    assert file.read_bytes().startswith(b"not a database"), "nothing is overwritten"


def test_a_folder_that_cannot_be_created_gives_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, where a folder should be")
    with pytest.raises(JournalError, match=r"taken.*another folder"):
        _again(tmp_path / "taken" / "journal.sqlite3")


def test_without_a_path_it_is_in_memory(tmp_path: Path) -> None:
    with Journal(None, service=SERVICE) as journal:
        journal.pin(PATH)
        assert PATH in journal.notes().pinned
    assert not list(tmp_path.rglob("*.sqlite3"))


def test_its_path_is_the_users_choice_or_the_state_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path / "mine"))
    assert default_path() == tmp_path / "mine" / "journal.sqlite3"
    monkeypatch.delenv("TINKER_RECOVERY_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert default_path() == tmp_path / "xdg" / "tinker_recovery" / "journal.sqlite3"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local/state/tinker_recovery/journal.sqlite3"


def test_a_choice_of_journal_is_a_path_the_state_folder_or_memory(tmp_path: Path) -> None:
    assert journal_path(tmp_path / "a") == tmp_path / "a"
    assert journal_path(str(tmp_path)) == tmp_path
    assert journal_path(STATE_FOLDER) == default_path()
    assert journal_path(None) is None
    with pytest.raises(UsageError, match="journal='' is not allowed"):
        journal_path("")


async def test_a_supervisor_whose_journal_cannot_be_used_is_refused_at_entry(
    local: LocalTinker, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, and no folder")
    with pytest.raises(JournalError, match="taken"):
        async with Supervisor(journal=tmp_path / "taken" / "journal"):
            pytest.fail("the body ran")
    assert local.sessions() == {}


@pytest.mark.usefixtures("local")
async def test_a_supervisors_journal_is_the_file_it_was_given(tmp_path: Path) -> None:
    async with Supervisor(journal=tmp_path / "here"):
        assert (tmp_path / "here").exists()
