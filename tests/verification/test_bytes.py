"""What is made of the bytes of one export and, where they are objected to, of a second."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from tinker_recovery.checkpoints import FileFacts, Finding
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.retention.verifier import (
    DEFAULT_LIMITS,
    _Look,
    _NoExportError,
    decode_files,
    encode_files,
)

PATH = "tinker://a/weights/1"
WHOLE = Finding("bytes", ok=True, reason="7 bytes in 1 file are whole")
BROKEN = Finding("bytes", ok=False, reason="a zero tail")
ONE, OTHER = {"x": FileFacts(7, "aa")}, {"x": FileFacts(7, "bb")}


class Look(_Look):
    """A look whose exports are given, one after the other; and why it is not loaded again."""

    def __init__(
        self, notebook: Notebook, *exports: Any, recorded: Any = None, refused: str | None = None
    ) -> None:
        verifier: Any = SimpleNamespace(
            limits=DEFAULT_LIMITS, calls=None, collaborators=SimpleNamespace(notebook=notebook)
        )
        said = None if recorded is None else encode_files(recorded)
        super().__init__(verifier, PATH, said, lambda _: None)
        self.exports = list(exports)
        self._refused = refused
        self.closed_before_second = False

    async def load(self, stack: AsyncExitStack) -> Any:
        del stack
        self.closed_before_second = self.first_is_closed
        return self._refused or object()

    async def _export(self, connection: object) -> tuple[Finding, dict[str, FileFacts]]:
        assert connection is not None
        made = self.exports.pop(0)
        if isinstance(made, BaseException):
            raise made
        return made  # type: ignore[no-any-return]  # as given

    async def find(self) -> Finding:
        self.first_is_closed = False

        def closed() -> None:
            self.first_is_closed = True

        async with AsyncExitStack() as stack:
            stack.callback(closed)
            return await self.bytes(object(), stack)  # type: ignore[arg-type]  # nothing is asked of it


@pytest.mark.parametrize(
    ("recorded", "exports", "ok", "says", "noted"),
    [
        (None, [(WHOLE, ONE)], True, "are whole", ONE),
        (ONE, [(WHOLE, ONE)], True, "are whole", None),
        (None, [(BROKEN, ONE), (BROKEN, ONE)], False, "a zero tail", None),
        (None, [(BROKEN, ONE), (WHOLE, OTHER)], True, "are whole", OTHER),
        (ONE, [(BROKEN, OTHER), (WHOLE, ONE)], True, "are whole", None),
        (ONE, [(WHOLE, OTHER), (WHOLE, ONE)], True, "are whole", None),
        (ONE, [(WHOLE, OTHER), (WHOLE, OTHER)], False, "SHA-256 bb, and aa was recorded", None),
        (ONE, [(WHOLE, {}), (WHOLE, {})], False, "none, for it is gone, and aa was", None),
        (
            ONE,
            [(WHOLE, OTHER), (WHOLE, {"x": FileFacts(7, "cc")})],
            True,
            "are not the same twice",
            None,
        ),
        (ONE, [(BROKEN, OTHER), (WHOLE, {"x": FileFacts(7, "cc")})], False, "SHA-256 cc", None),
        (ONE, [(WHOLE, OTHER), (BROKEN, {})], False, "a zero tail", None),
    ],
)
async def test_an_objection_counts_if_a_second_export_has_it_as_well(
    recorded: Any, exports: list[Any], says: str, noted: Any, *, ok: bool
) -> None:
    async with Notebook(Journal(None, service="http://127.0.0.1:1")) as notebook:
        look = Look(notebook, *exports, recorded=recorded)
        found = await look.find()
        files = (await notebook.notes()).files
    assert (found.ok, look.exports) == (ok, [])
    assert says in found.reason
    assert look.closed_before_second == (len(exports) == 2), "two sessions, one after the other"
    assert (decode_files(files[PATH]) if PATH in files else None) == noted


async def test_what_is_not_loaded_a_second_time_is_an_objection() -> None:
    async with Notebook(Journal(None, service="http://127.0.0.1:1")) as notebook:
        look = Look(notebook, (BROKEN, ONE), refused="the service does not load it")
        found = await look.find()
        assert (found.level, found.ok, found.reason) == (
            "bytes",
            False,
            "the service does not load it",
        )
        assert (await notebook.notes()).files == {}


async def test_where_there_is_no_export_the_bytes_are_not_looked_at() -> None:
    async with Notebook(Journal(None, service="http://127.0.0.1:1")) as notebook:
        found = await Look(notebook, _NoExportError()).find()
    assert (found.level, found.ok, found.looked) == ("bytes", True, False)
