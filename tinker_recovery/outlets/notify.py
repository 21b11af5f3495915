"""Notifications to people, by apprise: to Slack, mail, a webhook and a hundred others."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from tinker_recovery.errors import LeaseLost, UsageError
from tinker_recovery.faults import Kind
from tinker_recovery.outlets.secret_urls import hide_url, scheme_of, silence_libraries
from tinker_recovery.outlets.worker import Worker
from tinker_recovery.telemetry import RecoveryEvent, names
from tinker_recovery.telemetry.redaction import redact
from tinker_recovery.telemetry.text import as_text

Topic = Literal["given_up", "lease_lost", "mass_failure", "fault", "recovered", "finished"]

TOPICS: Final[frozenset[Topic]] = frozenset(get_args(Topic))
DEFAULT_TOPICS: Final[frozenset[Topic]] = frozenset({"given_up", "lease_lost", "mass_failure"})

VARIABLE: Final = "TINKER_RECOVERY_NOTIFY"
"""The variable with the URLs that a Supervisor notifies without ``notify=``, blanks between."""

DIGEST_S: Final = 60.0
"""Seconds between two notifications, by default."""

_WAITING, _LINES, _LINE = 1000, 40, 500
"""How many messages may wait; how many lines a digest has, and how long one is."""

_OF_EVENTS: Final[dict[str, Topic]] = {
    names.EVENT_EXHAUSTED: "given_up",
    names.EVENT_GAVE_UP: "given_up",
    names.EVENT_MASS_FAILURE: "mass_failure",
    names.EVENT_MASS_OVER: "mass_failure",
    names.EVENT_DETECTED: "fault",
    names.EVENT_COMPLETED: "recovered",
}
_SAYS: Final[dict[Topic, str]] = {
    "given_up": "given up",
    "lease_lost": "lease lost",
    "fault": "fault",
    "recovered": "recovered",
    "finished": "finished",
}
_BAD: Final = frozenset({"given up", "lease lost", "many runs fail"})


@dataclass(frozen=True, slots=True)
class Message:
    """One thing to say.

    Attributes:
        what: In a few words, for the title.
        text: The whole of it.
        run: The run it is about; empty if it is about no single one.
        time: Seconds since the epoch.
    """

    what: str
    text: str
    run: str = ""
    time: float = field(default_factory=time.time)


class Notify:
    """Who is notified of what: for ``Supervisor(notify=...)``, where the plain URLs do not suffice.

    ``Notify("slack://...", on={"given_up", "recovered"}, every_s=300)``. A run that ends by any
    error of Python's counts as given up, one that is stopped does not.

    Args:
        *urls: Of apprise: https://github.com/caronc/apprise lists them. They are secrets, and are
            shown nowhere.
        on: Some of ``"given_up"``, ``"lease_lost"``, ``"mass_failure"`` (begun and over), which are
            the default, and ``"fault"``, ``"recovered"``, ``"finished"``.
        every_s: Seconds between two notifications; what happens meanwhile comes in one.

    Raises:
        UsageError: apprise is not installed, does not know a URL, or another argument is wrong.
    """

    def __init__(
        self, *urls: str, on: Collection[Topic] = DEFAULT_TOPICS, every_s: float = DIGEST_S
    ) -> None:
        unknown = [on] if isinstance(on, str) else sorted(set(on) - TOPICS)
        if unknown:
            raise UsageError(
                f"on={unknown[0]!r} is not allowed: a collection of {', '.join(sorted(TOPICS))}"
            )
        if not every_s >= 0:
            raise UsageError(f"every_s={every_s!r} is not allowed: seconds, 0 or more")
        self.topics = frozenset(on)
        self._receivers = [_Receiver(f"notify[{at}]", url) for at, url in enumerate(urls)]
        self._every_s = every_s

    def __repr__(self) -> str:
        receivers = ", ".join(receiver.shown for receiver in self._receivers)
        return f"<Notify {receivers or 'nobody'} of {', '.join(sorted(self.topics))}>"

    def workers(self) -> Sequence[Worker[Message]]:
        """What sends, one for each receiver: one that hangs keeps no other from being sent to."""
        return [
            Worker(
                f"{receiver.name} ({receiver.shown})",
                receiver.send,
                most=_WAITING,
                every_s=self._every_s,
            )
            for receiver in self._receivers
        ]


def notify_by(given: Sequence[str] | Notify | None) -> Notify:
    """What ``notify=`` says, or else the variable.

    Raises:
        UsageError: As :class:`Notify`; or it is a text, which is a sequence of letters.
    """
    if isinstance(given, Notify):
        return given
    if isinstance(given, str):
        raise UsageError("notify is not allowed as a text: a list of URLs, or a Notify")
    if given is None:
        given = os.environ.get(VARIABLE, "").split()
    if not isinstance(given, Iterable):
        raise UsageError(
            f"notify is of type {type(given).__name__}, which is not allowed: a list of URLs, or a "
            "Notify"
        )
    return Notify(*given)


class _Receiver:
    """One URL, and how it is sent to."""

    def __init__(self, name: str, url: object) -> None:
        self.name = name
        if not isinstance(url, str) or not url:
            raise UsageError(f"{name} is not allowed: the URL of a service, as text")
        self.shown = scheme_of(url)
        try:
            hide_url(url)
        except ValueError:
            raise UsageError(f"{name} is not allowed: it is no URL (not shown here)") from None
        self._service = _service_of(url)
        if self._service is None:
            raise UsageError(
                f"{name}={self.shown!r} is not allowed: apprise knows no such service, or the URL "
                "lacks a part"
            )

    def send(self, messages: Sequence[Message]) -> None:
        """Send one notification of all of them; from a worker's thread."""
        title, body, bad = digest(messages)
        if not self._service.notify(
            title=title, body=body, notify_type="failure" if bad else "info", body_format="text"
        ):
            raise ConnectionError("the service did not take the notification")


def digest(messages: Sequence[Message]) -> tuple[str, str, bool]:
    """Title and text of one notification, and whether it says something bad."""
    pairs = list(dict.fromkeys((message.what, message.run) for message in messages))
    if len(pairs) == 1:
        ((what, run),) = pairs
        title = f"run {run}: {what}" if run else what
    else:
        counts = {what: sum(what == each for each, _ in pairs) for what, _ in pairs}
        title = ", ".join(
            f"{count} x {what}" if count > 1 else what for what, count in counts.items()
        )
    lines = [
        f"{time.strftime('%H:%M:%S', time.localtime(each.time))} "
        f"{f'run {each.run}: ' if each.run else ''}{as_text(redact(each.text))}"[:_LINE]
        for each in messages[:_LINES]
    ]
    if len(messages) > _LINES:
        lines.append(f"and {len(messages) - _LINES} more: see the log")
    bad = any(what in _BAD for what, _ in pairs)
    return f"tinker_recovery on {socket.gethostname()}: {as_text(title)}", "\n".join(lines), bad


class Teller:
    """Which messages the events of runs make."""

    def __init__(self, topics: Collection[Topic]) -> None:
        self._topics = topics
        self._notified: set[str] = set()

    def of_event(self, event: RecoveryEvent) -> Message | None:
        """What to say of an event, if anything."""
        topic = _OF_EVENTS.get(event.name)
        if topic == "fault" and event.fields.get(names.FAULT_KIND) == Kind.LEASE_LOST.value:
            topic = "lease_lost"
        if topic in {"given_up", "lease_lost"}:
            self._notified.add(event.run)
        if topic is None or topic not in self._topics:
            return None
        if topic == "mass_failure":
            over = event.name == names.EVENT_MASS_OVER
            return Message("many runs have recovered" if over else "many runs fail", event.message)
        return Message(_SAYS[topic], event.message, event.run, event.time)

    def of_end(self, run: str, error: BaseException | None) -> Message | None:
        """What to say of a run that is over, unless that was said."""
        notified = run in self._notified
        self._notified.discard(run)
        if error is None:
            return (
                Message("finished", "it has come to its end", run)
                if "finished" in self._topics
                else None
            )
        topic: Topic = "lease_lost" if isinstance(error, LeaseLost) else "given_up"
        if notified or topic not in self._topics or not isinstance(error, Exception):
            return None
        return Message(_SAYS[topic], f"{type(error).__name__}: {error}", run)


def _service_of(url: str) -> Any:
    """What sends to a URL; None if apprise knows no such service, or the URL lacks a part.

    It is one of apprise's plugins, and no ``Apprise``: that sends in a pool of threads, which the
    interpreter waits for before it exits, however long one hangs.

    Raises:
        UsageError: apprise is not installed.
    """
    try:
        import apprise  # noqa: PLC0415 - needs the extra, and takes half a second
    except ImportError as error:
        raise UsageError(
            f'notify= needs apprise: pip install "tinker-recovery[notify]" ({error})'
        ) from error
    silence_libraries()
    asset = apprise.AppriseAsset(
        app_id="tinker_recovery", app_desc="tinker_recovery", async_mode=False
    )
    logger = logging.getLogger("apprise")
    before, logger.disabled = logger.disabled, True  # it would log the URL
    try:
        return apprise.Apprise.instantiate(url, asset=asset)
    finally:
        logger.disabled = before
