"""Secrets in messages, and in whatever is logged."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

import tinker_recovery
from tinker_recovery import UsageError
from tinker_recovery.outlets.secret_urls import hide_url, scheme_of
from tinker_recovery.service import Endpoint
from tinker_recovery.supervision import ChildExited, RestartLimitReached
from tinker_recovery.telemetry import Event, EventSink, hide, redact
from tinker_recovery.telemetry.redaction import (
    LOGGERS,
    hide_headers,
    redact_value,
    split_userinfo,
)
from tinker_recovery.telemetry.stream import EventStream


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key tml-abc_DEF-123 is refused", "key *** is refused"),
        ("jwt eyJhbGciOi.eyJzdWIi.sig-_x expired", "jwt *** expired"),
        ("sent 'Authorization: Bearer abc.def'", "sent 'Authorization: Bearer ***'"),
        (
            "GET https://s3/x?part=1&X-Amz-Signature=ab12&X-Amz-Credential=me%2F1 failed",
            "GET https://s3/x?part=1&X-Amz-Signature=***&X-Amz-Credential=*** failed",
        ),
        ("https://blob/x?sv=1&sig=ab%2Fc'", "https://blob/x?sv=1&sig=***'"),
        (
            r'{"url":"https://s3/x?a=1\u0026Signature=ab12\u0026Expires=9"}',
            r'{"url":"https://s3/x?a=1\u0026Signature=***\u0026Expires=9"}',
        ),
        (
            "tinker://session-1:train:0/weights/step-00000005-3d71b600, at step 5",
            "tinker://session-1:train:0/weights/step-00000005-3d71b600, at step 5",
        ),
        ("no route to https://me:p@ss@host:8080/x", "no route to https://***@host:8080/x"),
        ("git+https://a-token@host/x.git", "git+https://***@host/x.git"),
        ("see https://host/@me/x, or a@b.example", "see https://host/@me/x, or a@b.example"),
        ("hf_abcdefghijklmnopqrst is no key", "*** is no key"),
        ("html-rendering of hf_token", "html-rendering of hf_token"),
    ],
)
def test_keys_tokens_and_signatures_are_hidden_and_nothing_else_is(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_the_key_of_the_environment_is_hidden_whatever_it_looks_like(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "a key of some other form")
    assert redact("401 for 'a key of some other form'") == "401 for '***'"


def test_other_secrets_of_the_environment_are_hidden_once_there_is_an_endpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a token of some form")
    Endpoint("http://127.0.0.1:1", None)
    assert redact("401 for 'a token of some form'") == "401 for '***'"


def test_a_configured_secret_is_hidden_however_it_is_quoted() -> None:
    hide('p@ss/"word"\\1')
    for quoted in (
        'p@ss/"word"\\1',
        "p%40ss/%22word%22%5C1",
        "p%40ss%2F%22word%22%5C1",
        'p@ss/\\"word\\"\\\\1',
        repr('p@ss/"word"\\1')[1:-1],
    ):
        assert redact(f"<{quoted}>") == "<***>"


def test_a_key_that_begins_like_the_configured_one_is_hidden_whole() -> None:
    hide("tml-configured")
    assert redact("tml-configured, tml-configuredAndMore") == "***, ***"


@pytest.mark.parametrize(
    ("headers", "text", "shown"),
    [
        ({"X-Gate": "open-4711"}, "open-4711", "***"),
        ({"X-Level": "1", "X-Empty": "", "X-Flag": "true"}, "true at 1", "true at 1"),
        ({"X-Stage": "production"}, "in production", "in production"),
        ({"X-Team": "blue-1"}, "of blue-1", "of blue-1"),
        ({"X-Auth-Mode": "basic"}, "mode basic", "mode basic"),
        ({"X-Proxy-Token": "h4nd"}, "h4nd over", "*** over"),
        ({"X-Proxy-Password": "opensesame"}, "it is opensesame", "it is ***"),
        ({"Authorization": "Basic dXNlcjpwdw=="}, "sent dXNlcjpwdw==", "sent ***"),
        ({"User-Agent": "trainer/1.0 python/3.11"}, "python/3.11", "python/3.11"),
    ],
)
def test_what_of_a_header_is_hidden_goes_by_its_length_its_name_and_whether_it_is_a_word(
    headers: dict[str, str], text: str, shown: str
) -> None:
    hide_headers(headers)
    assert redact(text) == shown


def test_values_are_redacted_inside_and_left_as_they_are_without_secrets() -> None:
    clean = {"a": [1, "x", ("y", None)], "b": {"c": b"tml-bytes"}}
    assert redact_value(clean) is clean
    secret = {"a": [1, "tml-secret", ("y", "tml-secret")], "b": {"c": "tml-secret"}}
    assert redact_value(secret) == {"a": [1, "***", ("y", "***")], "b": {"c": "***"}}


@pytest.mark.parametrize(
    "text",
    ["?sig" * 25_000, "&key=" * 20_000, "://" * 30_000, "a.b-" * 25_000, "eyJ-" * 25_000],
    ids=lambda text: text[:4],
)
def test_a_long_hostile_text_takes_linear_time(text: str) -> None:
    began = time.perf_counter()
    redact(text)
    assert time.perf_counter() - began < 2.0


# Addresses


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://host/x", ("https://host/x", "")),
        ("https://me:pw@host:8080/x", ("https://host:8080/x", "me:pw")),
        ("http://me:p%40ss@[::1]:8080", ("http://[::1]:8080", "me:p%40ss")),
        ("https://host/@me", ("https://host/@me", "")),
    ],
)
def test_an_address_is_taken_apart(url: str, parts: tuple[str, str]) -> None:
    assert split_userinfo(url) == parts


def test_an_endpoint_has_a_plain_address_and_hides_its_credentials() -> None:
    endpoint = Endpoint(
        "https://somebody:4-w%40rd@tinker.example/prod",
        SecretStr("a-key-of-no-form"),
        {"X-Gate": "gate-value-7"},
    )
    assert endpoint.base_url == "https://tinker.example/prod"
    assert endpoint.headers == {
        "X-Gate": "gate-value-7",
        "Authorization": "Basic c29tZWJvZHk6NC13QHJk",
    }
    basic = "c29tZWJvZHk6NC13QHJk"
    for secret in ("4-w%40rd", "4-w@rd", basic, "a-key-of-no-form", "gate-value-7"):
        assert secret not in repr(endpoint)
        assert redact(f"no {secret}!") == "no ***!"


def test_an_authorization_header_takes_precedence_over_the_address() -> None:
    endpoint = Endpoint("https://me:pw-1@host", None, {"authorization": "Bearer a-token-of-mine"})
    assert endpoint.headers == {"authorization": "Bearer a-token-of-mine"}


# Logs

MESSAGE = "tml-a-key for https://me:pw@host/?sig=ab12"
SHOWN = "*** for https://***@host/?sig=***"


class Handler(logging.Handler):
    """Keeps what a handler would write, and what one for machines could."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        try:
            self.lines.append(self.format(record))
        except TypeError:
            self.handleError(record)

    @property
    def everything(self) -> str:
        """All of it."""
        return "\n".join([*self.lines, *(repr(vars(record)) for record in self.records)])


@pytest.fixture
def handler() -> Iterator[Handler]:
    handler = Handler()
    logger = logging.getLogger()
    level = logging.getLogger("tinker_recovery").level
    logger.addHandler(handler)
    logging.getLogger("tinker_recovery").setLevel(logging.DEBUG)
    yield handler
    logging.getLogger("tinker_recovery").setLevel(level)
    logger.removeHandler(handler)


def test_no_logger_of_the_package_is_without_the_filter() -> None:
    for module in pkgutil.walk_packages(tinker_recovery.__path__, "tinker_recovery."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    known = logging.Logger.manager.loggerDict
    names = {
        name
        for name, logger in known.items()
        if name.partition(".")[0] == "tinker_recovery" and isinstance(logger, logging.Logger)
    }
    assert names == set(LOGGERS)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_direct_call_of_a_logger_writes_no_secret(name: str, handler: Handler) -> None:
    logger = logging.getLogger(name)
    extra: dict[str, Any] = {"a.text": MESSAGE, "a.list": [MESSAGE], "a.map": {"b": (MESSAGE,)}}
    logger.warning("a text: %s and an error: %r", MESSAGE, ValueError(MESSAGE), extra=extra)
    logger.warning("by name: %(text)s", {"text": MESSAGE})
    logger.warning(MESSAGE)
    logger.warning("in %s%s", "tml-two", "-parts")
    logger.warning(RuntimeError(MESSAGE), stack_info=True)
    try:
        try:
            int(MESSAGE)
        except ValueError as error:
            error.add_note(MESSAGE)
            raise RuntimeError("over") from error
    except RuntimeError:
        logger.exception("it failed: %s", MESSAGE)
    assert len(handler.records) == 6
    for secret in ("tml-", "me:pw", "ab12"):
        assert secret not in handler.everything
    assert handler.lines[0] == f"a text: {SHOWN} and an error: ValueError('{SHOWN}')"
    assert handler.lines[1:4] == [f"by name: {SHOWN}", SHOWN, "in ***"]
    assert f"base 10: '{SHOWN}'\n{SHOWN}\n" in handler.lines[5], "the cause and its note"
    assert handler.lines[5].endswith("RuntimeError: over")
    assert "test_redaction.py" in handler.lines[5], "a traceback all the same"


def test_a_record_without_secrets_is_left_as_it_is(handler: Handler) -> None:
    error = ValueError("no secret")
    logging.getLogger("tinker_recovery").error("%s of %r", "a", [1], exc_info=error)
    (record,) = handler.records
    assert (record.msg, record.args) == ("%s of %r", ("a", [1]))
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_arguments_that_do_not_fit_are_for_logging_to_report(
    handler: Handler, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not to those of pytest, which raise what they meet.
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    argument = f"tml-{'no-number'}"  # the traceback shows this file's lines
    logging.getLogger("tinker_recovery").error("%d", argument)
    assert len(handler.records) == 1
    said = capsys.readouterr().err
    assert "TypeError: %d format" in said
    assert "tml-no-number" not in said


# Errors and events


def test_no_error_of_the_package_quotes_a_secret() -> None:
    hide("some-secret-value")
    for error in (
        UsageError("field='some-secret-value' is not allowed"),
        RestartLimitReached(
            supervisor="s",
            child="c",
            max_restarts=1,
            max_seconds=1.0,
            cause=RuntimeError("some-secret-value"),
        ),
    ):
        assert "some-secret-value" not in f"{error} {error!r} {error.args}"
        assert "***" in str(error)


async def test_an_event_of_the_tree_shows_no_secret_of_a_childs_exception() -> None:
    sink = EventSink()
    stream: EventStream = sink.streams.new(10)
    for error in (RuntimeError(MESSAGE), RuntimeError("no secret"), None):
        sink.tree(
            ChildExited(
                supervisor="s",
                child="c",
                incarnation=1,
                at=0.0,
                outcome="crash",
                error=error,
                lived_s=1.0,
            )
        )
    sink.streams.end()
    events: list[Event] = [event async for event in stream]
    assert "tml-" not in repr(events)
    first, second, third = events
    assert isinstance(first, ChildExited)
    assert str(first.error) == f"RuntimeError: {SHOWN}"
    assert isinstance(second, ChildExited)
    assert isinstance(second.error, RuntimeError)
    assert isinstance(third, ChildExited)
    assert third.error is None


@pytest.mark.parametrize(
    ("url", "hidden", "stays"),
    [
        (
            "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
            "TIiajkdnlazkcOXrIdevi7FQ",
            "slack",
        ),
        ("tgram://123456789:abc-defg_hijklmnop/-1001234", "abc-defg_hijklmnop", "1001"),
        ("ntfy://my-topic-77", "my-topic-77", "topic"),
        ("mailto://me:opense-same@example.com", "opense-same", "example.com"),
        ("json://127.0.0.1:8080/notify?token=abcd-1234-efgh", "abcd-1234-efgh", "127.0.0.1:8080"),
        ("https://hc-ping.com/0f8b7a1e-55aa-4b3c", "0f8b7a1e-55aa-4b3c", "hc-ping.com"),
    ],
)
def test_the_secret_parts_of_a_notified_address_are_hidden_wherever_they_occur(
    url: str, hidden: str, stays: str
) -> None:
    hide_url(url)
    assert redact(f"asked {url} now") == "asked *** now"
    assert hidden not in redact(f"no such path: /{hidden}")
    assert redact(f"at {stays}") == f"at {stays}"
    assert hidden not in scheme_of(url)
