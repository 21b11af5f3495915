"""A service quotes a list of secrets in its errors: none appears in anything we write."""

from __future__ import annotations

import functools
import logging
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
import tinker
from click.testing import CliRunner
from loops import MODEL, InstantClock, policy, train
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from span_reading import ours

from tinker_recovery import (
    NoUsableCheckpoint,
    RecoveryEvent,
    RecoveryExhausted,
    RecoveryPolicy,
    Supervisor,
)
from tinker_recovery.cli import main
from tinker_recovery.journal import Journal
from tinker_recovery.telemetry import Event, json_line
from tinker_recovery.testing import FaultRule, LocalTinker

KEY = "tml-configured-key-0001"
GATE = "open-sesame-4711"
PASSWORD = "pa55-w0rd"  # noqa: S105 - there is no such service

QUOTED = {
    KEY: KEY,
    "tml-someone_elses-key": "tml-someone_elses-key",
    "eyJzdWIiOiJtZSJ9": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl",
    "f00.b4r-t0ken": "Authorization: Bearer f00.b4r-t0ken",
    "51673ed0": "https://s3.example/x?part=1&X-Amz-Signature=51673ed0&X-Amz-Expires=9",
    GATE: f"X-Gate: {GATE}",
    PASSWORD: f"http://someone:{PASSWORD}@127.0.0.1/",
    "pa55word-of-another": "https://other:pa55word-of-another@proxy.example:8080/x",
}
"""Each secret, and how an error quotes it."""

MESSAGE = "refused; " + "; ".join(QUOTED.values())
NAME = "sft"
STEPS = 9


def leaked(written: object) -> list[str]:
    """The secrets in a text, or in bytes."""
    text = written.decode(errors="replace") if isinstance(written, bytes) else str(written)
    return [secret for secret in QUOTED if secret in text]


def _logged(records: Iterable[logging.LogRecord]) -> str:
    """Our records as text, and as a handler for machines may take them apart."""
    formatter = logging.Formatter()
    ours = [record for record in records if record.name.startswith("tinker_recovery")]
    assert ours
    return "\n".join(
        part for record in ours for part in (formatter.format(record), repr(vars(record)))
    )


def _rows(file: Path) -> str:
    with closing(sqlite3.connect(file)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return repr([database.execute(f"SELECT * FROM {name}").fetchall() for (name,) in tables])  # noqa: S608 - the file's own tables


def _printed(journal: Path, folder: Path, service: str) -> dict[str, str]:
    page = folder / "page.html"
    printed = {}
    for command in (
        ["runs", "--all"],
        ["runs", "--all", "--json"],
        ["show", NAME],
        ["show", NAME, "--json"],
        ["show", NAME, "--service", service],
        ["watch", "--once"],
        ["watch", "--once", "--json"],
        ["watch", NAME, "--once"],
        ["report", NAME, "-o", str(page)],
    ):
        done = CliRunner(env={"COLUMNS": "500"}).invoke(main, [*command, "--journal", str(journal)])
        assert done.exit_code == 0, done.output
        printed[" ".join(command)] = done.output
    return printed | {"page": page.read_text()}


class Recorded:
    """A Supervisor of a service behind a password and a gate, and everything it writes."""

    def __init__(self, local: LocalTinker, journal: Path, **changes: object) -> None:
        self.service = local.base_url.replace("://", f"://someone:{PASSWORD}@")
        self.journal = journal
        self.events: list[RecoveryEvent] = []
        self.failures: list[BaseException] = []
        self.clock = InstantClock(poll_interval_s=30.0)
        self.supervisor = Supervisor(
            self._policy(**changes),
            service=lambda: tinker.ServiceClient(
                base_url=self.service,
                api_key=KEY,
                default_headers_overrides={"X-Gate": GATE},
            ),
            on_event=self._heard,
            journal=journal,
            clock=self.clock.clock,
        )
        self.stream = self.supervisor.events()

    def _policy(self, **changes: object) -> RecoveryPolicy:
        return policy(
            poll_interval_s=30.0,
            on_recovery=self._raise,
            on_failure=lambda _, error: self.failures.append(error),
            **changes,
        )

    def _raise(self, *_: object) -> None:
        raise RuntimeError(MESSAGE) from ValueError(MESSAGE)

    def _heard(self, event: RecoveryEvent) -> None:
        self.events.append(event)
        raise RuntimeError(MESSAGE)

    async def run(self) -> BaseException:
        """Train until it is given up."""
        with pytest.raises((RecoveryExhausted, NoUsableCheckpoint)) as caught:
            async with self.supervisor:
                await self.supervisor.run(
                    functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, name=NAME
                )
        return caught.value

    async def written(
        self, error: BaseException, spans: InMemorySpanExporter, records: list[logging.LogRecord]
    ) -> dict[str, object]:
        """Everything written, by where."""
        streamed: list[Event] = [event async for event in self.stream]
        folder = self.journal.parent
        assert self.events
        assert streamed
        return {
            "str": str(error),
            "repr": repr(error),
            "on_failure": repr(self.failures),
            "on_event": repr(self.events),
            "lines": "".join(map(json_line, self.events)),
            "stream": repr(streamed),
            "spans": "".join(span.to_json() for span in ours(spans)),
            "log": _logged(records),
            "rows": _rows(self.journal),
            **{each.name: each.read_bytes() for each in folder.iterdir()},
            **_printed(self.journal, folder, self.service),
        }


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    folder = tmp_path / "journal"
    folder.mkdir()
    return folder / "journal.sqlite3"


@pytest.mark.parametrize(
    ("rules", "ends_with"),
    [
        ([FaultRule("poison", 7, times=100, message=MESSAGE)], RecoveryExhausted),
        (
            [
                FaultRule("poison", 7, message=MESSAGE),
                FaultRule("fail", request="load_weights", times=100, message=MESSAGE),
            ],
            RecoveryExhausted,
        ),
        (
            [
                FaultRule("poison", 7, message=MESSAGE),
                FaultRule(
                    "fail", request="load_weights", times=100, category="user", message=MESSAGE
                ),
            ],
            NoUsableCheckpoint,
        ),
    ],
    ids=["poisoned again and again", "never restored", "no checkpoint loads"],
)
async def test_no_secret_that_the_service_quotes_is_written_anywhere(
    rules: list[FaultRule],
    ends_with: type[Exception],
    journal: Path,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "tinker_recovery")
    async with LocalTinker(api_key=KEY, faults=rules) as local:
        recorded = Recorded(local, journal)
        Journal(journal, service=local.base_url).notes()
        # Whoever has read the file and is still there keeps its write-ahead log.
        with closing(sqlite3.connect(journal)) as reader:
            reader.execute("SELECT * FROM notes").fetchall()
            error = await recorded.run()
            written = await recorded.written(error, spans, caplog.records)
            assert "journal.sqlite3-wal" in written
    assert isinstance(error, ends_with)
    assert {where: found for where, text in written.items() if (found := leaked(text))} == {}
    assert "refused; ***; ***; ***; Authorization: Bearer *** https://s3" in str(written["log"])
    assert "X-Gate: ***; http://***@127.0.0.1/; https://***@proxy" in str(written["log"])
    assert "refused; ***" in str(written["rows"])
