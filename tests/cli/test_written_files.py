"""What we write: nothing that was there is harmed, and nobody else reads or redirects it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from poisoned_run import NAME

from tinker_recovery import JournalError
from tinker_recovery.cli import main
from tinker_recovery.journal import Journal

SOMEBODY = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


def _report(journal: Path, to: Path | str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["report", NAME, "--journal", str(journal), "-o", str(to)])
    return done.exit_code, done.output


def test_a_page_asked_for_on_standard_output_goes_there_and_nothing_else_does(
    written: Path, tmp_path: Path
) -> None:
    standard = tmp_path / "stdout"  # as /dev/stdout is, which a test must not put at risk
    standard.symlink_to("/proc/self/fd/1")
    command = [
        sys.executable,
        "-m",
        "tinker_recovery.cli",
        "report",
        NAME,
        "--journal",
        str(written),
    ]
    for to in ("-", standard):
        done = subprocess.run(  # noqa: S603 - our own command
            [*command, "-o", to], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("<!DOCTYPE html>")
        assert done.stdout.rstrip().endswith("</html>")
        assert "wrote" in done.stderr
    assert standard.is_symlink()


def test_a_page_goes_through_a_fifo_which_stays_one(written: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()), daemon=True)
    reader.start()
    status, said = _report(written, fifo)
    reader.join(10)
    assert status == 0, said
    assert read[0].startswith("<!DOCTYPE html>")
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@as_root
def test_a_page_on_a_device_leaves_the_device(written: Path, tmp_path: Path) -> None:
    null = tmp_path / "null"  # a node of our own: the machine's must not be put at risk
    os.mknod(null, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    link = tmp_path / "link"
    link.symlink_to(null)
    for device in (null, link):
        status, said = _report(written, device)
        assert status == 0, said
        assert stat.S_ISCHR(device.stat().st_mode)
    assert link.is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "null"]


def test_nothing_planted_beside_the_page_is_written_through(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    page = tmp_path / "page.html"
    (tmp_path / f".page.html.{os.getpid()}.part").symlink_to(victim)
    assert _report(written, page)[0] == 0
    assert victim.read_text() == "precious"
    # Not even where the name was guessed.
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".page.html.guessed.part").symlink_to(victim)
    status, said = _report(written, page)
    assert (status, "cannot be written" in said) == (3, True)
    assert victim.read_text() == "precious"
    assert page.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_journal_and_page_are_for_their_owner_alone_whatever_the_umask(
    written: Path, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        with Journal(tmp_path / "journal.sqlite3", service="http://s") as journal:
            journal.pin("tinker://r/weights/n")
            modes = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}
        assert _report(written, tmp_path / "page.html")[0] == 0
    finally:
        os.umask(before)
    modes["page.html"] = (tmp_path / "page.html").stat().st_mode & 0o777
    assert "journal.sqlite3" in modes
    assert set(modes.values()) == {0o600}


def test_a_page_that_was_there_keeps_the_rights_its_owner_gave_it(
    written: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text("an earlier one")
    page.chmod(0o644)
    assert _report(written, page)[0] == 0
    assert page.stat().st_mode & 0o777 == 0o644


def test_without_a_place_the_page_is_written_here_by_the_runs_name_and_replaces_nothing(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    arguments = ["report", NAME, "--journal", str(written)]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert (done.exit_code, list(here.iterdir())) == (0, []), "the figures alone"
    done = CliRunner().invoke(main, arguments)
    (page,) = here.iterdir()
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == f"wrote {page.name}: open it in a browser"
    assert page.suffix == ".html"
    page.write_text("mine")
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, page.read_text()) == (3, "mine")
    assert f"there is a {page.name} already: -o {page.name} replaces it" in done.stderr
    assert list(here.iterdir()) == [page]


@as_root
def test_nothing_is_written_into_the_folder_of_somebody_else(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, SOMEBODY, SOMEBODY)
    status, said = _report(written, folder / "page.html")
    assert status == 3
    assert f"belongs to user {SOMEBODY}" in said
    with pytest.raises(JournalError, match=rf"belongs to user {SOMEBODY}.*TINKER_RECOVERY_STATE"):
        Journal(folder / "journal.sqlite3", service="http://s").pin("tinker://r/weights/n")
    assert not list(folder.iterdir())
