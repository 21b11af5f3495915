"""The one redactor: what never goes into a log, a span, an event, an error or the journal.

A service or a proxy may quote a key, a token or a signed address in its error, and its text goes
into ours. These are hidden:

- what was configured: the API key, however it was given, the headers of the ServiceClient, a
  password in its base URL, the addresses of those notified, and the values of :data:`VARIABLES`;
  also URL-encoded or quoted;
- what looks like a secret: Tinker's API keys, JSON Web Tokens, what follows ``Bearer``, Hugging
  Face's tokens, the signing parts of a URL, and the user and password of any URL.

A header's value may be an ordinary word, which must not be hidden in every text. So the value of a
header is hidden if it has 8 characters or more and is not a single word (``production``). If the
header's name says that it is a secret (auth, key, token, ...), and for keys and passwords, 4
characters are enough, or 8 for a single word. Shorter values, such as ``1`` and ``true``, stay.

What was configured once stays hidden for the life of the process: errors outlive the Supervisor
that met them, and the few short texts cost nothing.

Every record of the package's loggers passes :class:`RedactingFilter`, and every message of its
errors :func:`redact`; events, spans and the journal call it themselves.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from tinker_recovery.supervision.errors import ErrorStandIn, PortableError
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.text import as_text

VARIABLES: Final = (
    "CLOUDFLARE_ACCESS_CLIENT_SECRET",  # the SDK sends it with every request
    "HF_TOKEN",
    "WANDB_API_KEY",
)
"""Variables whose values are secrets; read when an endpoint is made."""

_KEY = "TINKER_API_KEY"

LOGGERS: Final = (
    names.SCOPE,
    f"{names.SCOPE}.supervision",
    f"{names.SCOPE}.testing._service_state",
)
"""Every logger of the package. A filter of a logger does not see what its children log."""

_HIDDEN = "***"

_MARKS = ("?", "&", "\\u0026", "@", "tml-", "eyJ", "hf_", "Bearer ")
"""One of these is in every text that the pattern finds something in; most texts have none."""

# The first group stays. Each repetition is bounded, or can start only once in each word, so that
# the time is linear in the length of the text, which may be hostile.
_SHAPES = (
    r"((?:[?&]|\\u0026)[^=&?\s]{0,64}(?i:signature|credential|token|secret|sig|key)"
    r"[^=&?\s]{0,64}=)[^&\s\"'\\]+"
    r"|(?<=://)[^/?#\s\"<>]+(?=@)"
    r"|(?<![A-Za-z0-9])tml-[A-Za-z0-9_-]{4,}"
    r"|(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
    r"|(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}"
    r"|(?<=\bBearer )[^\s\"',]+"
)

_SECRET_NAME = re.compile("auth|cookie|credential|key|pass|secret|sig|token", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z][a-z]{,15}|[A-Z]{1,16}")
_SHORT, _LONG = 4, 8


class _Known:
    """The configured secrets, and the pattern of everything that is hidden."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may log while it is held
        self._forms: set[str] = set()
        self.texts: frozenset[str] = frozenset()
        self.marks: tuple[str, ...] = _MARKS
        self.pattern = re.compile(_SHAPES)

    def add(self, text: str) -> None:
        """Hide this from now on, as it is and as URLs, JSON and reprs quote it."""
        with self._lock:
            self._forms |= {text, quote(text), quote(text, safe="")}
            self._forms |= {json.dumps(text)[1:-1], repr(text)[1:-1]}
            # The longest first. Another key may begin like a known one, and is hidden whole.
            known = [
                re.escape(form) + ("[A-Za-z0-9_-]*" if form.startswith("tml-") else "")
                for form in sorted(self._forms, key=len, reverse=True)
            ]
            self.pattern = re.compile("|".join([*known, _SHAPES]))
            self.marks = (*_MARKS, *self._forms)
            self.texts |= {text}  # last: what a fork has cut short is added again

    def forked(self) -> None:
        """In a forked child: the thread that held the lock is not there to release it."""
        self._lock = threading.RLock()


_known = _Known()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_known.forked)


def hide(*secrets: str, sure: bool = True) -> None:
    """Hide these texts from now on, unless they are too short; see the module for the rule.

    Args:
        secrets: The texts.
        sure: Whether they are known to be secrets; False for headers that may be anything.
    """
    for text in secrets:
        word = _WORD.fullmatch(text) is not None
        shortest = _SHORT if sure and not word else _LONG
        if len(text) >= shortest and (sure or not word) and text not in _known.texts:
            _known.add(text)


def hide_headers(headers: Mapping[str, str]) -> None:
    """Hide the values of these headers; of ``Authorization: Basic dXNlcg==`` both parts alone."""
    for name, value in headers.items():
        sure = _SECRET_NAME.search(name) is not None
        hide(value, *(value.split() if sure else ()), sure=sure)


def hide_userinfo(userinfo: str) -> None:
    """Hide the password in the ``user:password`` of a URL; without one, the user is the secret."""
    user, colon, password = userinfo.partition(":")
    secret = password if colon else user
    hide(secret, unquote(secret))


def hide_environment() -> None:
    """Hide the values of :data:`VARIABLES`."""
    hide(*(os.environ.get(name, "") for name in VARIABLES))


def split_userinfo(url: str) -> tuple[str, str]:
    """A URL without its user and password, and these as they stand in it, or an empty text."""
    if "@" not in url:
        return url, ""
    parts = urlsplit(url)
    userinfo, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=host).geturl(), userinfo


def redact(text: str) -> str:
    """The text with every secret in it replaced by ``***``."""
    key = os.environ.get(_KEY)
    if key is not None and key not in _known.texts:
        hide(key)
    if any(mark in text for mark in _known.marks):
        return _known.pattern.sub(rf"\1{_HIDDEN}", text)
    return text


def redact_value(value: Any) -> Any:
    """A value with the texts in it redacted, in mappings, lists and tuples too.

    One without secrets is returned itself, and not a copy.
    """
    if isinstance(value, str):
        redacted = redact(value)
        return value if redacted == value else redacted
    if isinstance(value, Mapping):
        items = {key: redact_value(each) for key, each in value.items()}
        return value if all(items[key] is each for key, each in value.items()) else items
    if isinstance(value, list | tuple):
        each_redacted = [redact_value(each) for each in value]
        if any(new is not old for new, old in zip(each_redacted, value, strict=True)):
            return each_redacted if isinstance(value, list) else tuple(each_redacted)
    return value


def redact_error(error: BaseException) -> BaseException:
    """The exception, or what stands for it where its text holds a secret."""
    texts = (str(error), repr(error))
    return error if redact_value(texts) is texts else ErrorStandIn(error)


def _in_one_line(argument: object) -> object:
    text = str(argument)
    return argument if "\n" not in text else as_text(text)


class RedactingFilter(logging.Filter):
    """Redacts a log record in place, and lets it pass.

    That is its message, its arguments, its ``extra`` and its traceback. A record without secrets
    keeps its arguments and its exception. With a secret in the traceback, formatters write the
    redacted traceback, and handlers that look at the exception itself find an
    :class:`~tinker_recovery.supervision.errors.ErrorStandIn`.
    """

    _formatter = logging.Formatter()
    _own = frozenset(vars(logging.makeLogRecord({}))) - {"args", "stack_info"}

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record, and show what is in it as the text it is."""
        for name in vars(record).keys() - self._own:
            setattr(record, name, redact_value(getattr(record, name)))
        if record.exc_info and record.exc_info[1] is not None:
            text = self._formatter.formatException(record.exc_info)
            redacted = redact(text)
            shown = as_text(redacted, lines=True)
            if shown != text:
                record.exc_text = shown
            if redacted != text:
                stand_in = ErrorStandIn(record.exc_info[1])
                record.exc_info = (ErrorStandIn, stand_in, record.exc_info[2])
        try:
            message = said = record.getMessage()
            if isinstance(record.args, tuple) and "\n" in message:
                # Lines end where the format says so: one that a name or an error begins could look
                # like another record.
                message = str(record.msg) % tuple(_in_one_line(each) for each in record.args)
        except Exception:  # noqa: BLE001 - logging itself reports arguments that do not fit
            return True
        shown = as_text(redact(message), lines=True)
        if shown != said:
            record.msg, record.args = shown, None
        return True


for _name in LOGGERS:
    logging.getLogger(_name).addFilter(RedactingFilter())
PortableError.redact = staticmethod(redact)
