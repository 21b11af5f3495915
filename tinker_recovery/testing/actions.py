"""The faults of the local server: each action, the requests it strikes, its parameters.

An *engine* fault strikes when a request is about to be executed; a *wire* fault strikes when an
HTTP request arrives, and changes its reply. What a user of the SDK (0.38) sees:

=================  ====================================  ==========================================
action             what the server does                  what the user of the SDK sees
=================  ====================================  ==========================================
engine
``poison``         the run becomes corrupted; this and   ``RequestFailedError`` for each; with
                   every later request of it fails, or,  ``quiet``, futures pending for ever and the
                   if ``quiet``, never finishes          run's ``corrupted`` flag
``fail``           this one request fails, without any   ``RequestFailedError``
                   effect on the weights
``hang``           this one request never finishes, and  futures pending for ever
                   none behind it in the same run
``gone``           this one request is executed, its     ``RetryableException``, which is no
                   result is lost (HTTP 410 on polls)    ``TinkerError``
``rollback``       the run goes back to its last         nothing: requests succeed, ``corrupted``
                   checkpoint, or its beginning, and     stays False, the steps since are lost
                   continues
``fail_session``   the run's session becomes failed:     ``RequestFailedError`` for what is queued,
                   what is queued fails, new requests    ``APIStatusError`` (410) for new requests;
                   and heartbeats answer 410             ``search_sessions`` says failed
``pause``          polls answer try_again with           a pending future, for hours if need be,
                   ``queue_state``, for ``for_s`` or     with a warning in the log after 15 min;
                   until released                        then the result
``nan_loss``       this forward_backward reports NaN or  a loss that is NaN or inf; if ``sticky``
                   inf; if ``sticky`` the weights        every loss from there on is NaN
                   become NaN too
``cold_optimizer`` the load succeeds, with optimizer     nothing; the second step after the load
                   moments at zero                       differs
``wrong_restore``  the load succeeds, with weights that  nothing; the first loss after the load
                   are slightly off                      differs a little
wire
``status``         answers ``status``, executes nothing  see below
``drop``           executes, then closes the connection  the SDK retries a submit with the same
                   without a reply                       seq_id after 0.5 s (a save after 1 s), for
                                                         300 s; a poll after 1, 2, 4 ... 30 s, for
                                                         ever
``slow``           executes, replies ``delay_s`` later   waits; its own timeout is 45 s for a poll,
                                                         60 s for others, and then it retries
``truncate``       executes, sends half of the reply,    as ``drop``; with ``silent`` only after its
                   closes; with ``silent`` it leaves     timeout
                   the connection open
``malformed``      executes, replies nonsense: ``body``  never a retry. ``text``: a bare
                   is ``text`` (not JSON), ``shape``     ``JSONDecodeError``; ``shape``:
                   (other JSON) or ``garbage`` (bytes    ``APIResponseValidationError`` of a submit,
                   called protobuf)                      ``ValueError`` of a polled
                                                         forward_backward, but *success*, with
                                                         ``metrics=None``, of a polled optim_step;
                                                         ``garbage``: ``APIResponseValidationError``
                                                         of a submit, ``ValueError`` of a poll
``lost_save``      the save is executed, its reply is    the SDK retries for 300 s, then raises
                   dropped; retries of it answer 409     ``ConflictError``; the checkpoint exists
=================  ====================================  ==========================================

What a ``status`` does to the SDK:

- On submits, 408, 409, 429 and 5xx are retried for 300 s and more; those of ``create_session`` and
  ``create_model`` by its HTTP client alone, ten times within a minute. 402 is retried silently
  every 5 s for up to 3600 s. Everything else raises at once.
- On polls (``retrieve_future``), 5xx and 408 are retried for ever without any pause, 429 and a lost
  connection for ever with pauses of 1, 2, 4 ... 30 s, 402 as above. 410 raises
  ``RetryableException``, 400 ``ValueError`` after three more tries, the rest, including 409,
  ``ValueError`` with the real error as its cause.
- On ``session_heartbeat``, 410 ends the heartbeats silently; anything else is a warning in the log
  after 120 s.
- On ``save_weights``, 409 means that the name is taken, though it is free.
- ``retry_after_s`` becomes a Retry-After header, which the SDK obeys up to 60 s where its HTTP
  client retries: not on polls, and not on saves.

What a fault does to sampling, if a rule names ``request="asample"``; wire faults strike the polls
of samples with ``request="retrieve_future", polled="asample"`` as well:

================== ===============================================================================
action             what the user of the SDK sees
================== ===============================================================================
``poison``         as ``fail``, and with ``quiet`` as ``hang``: a sampler is not poisoned, its next
                   request succeeds
``fail``           ``RequestFailedError``, of this one
``hang``           a future pending for ever; other requests of the same sampler succeed
``gone``           nothing: the SDK samples again, and with a seed gets the same tokens
``fail_session``   ``RequestFailedError`` for what is pending, ``APIStatusError`` (410) for the next
``pause``          a pending future, then the result
``rollback``       does not strike it, nor do ``nan_loss``, ``cold_optimizer``, ``wrong_restore``
                   and ``lost_save``; samplers of a run that goes back keep their weights
``status``         of a submit: 402, 408, 409, 429 and 5xx are retried, everything else raises at
                   once, 404 as ``NotFoundError``; of a poll as above, but after 410 the SDK samples
                   again
``drop``           nothing: the SDK retries after a second
``slow``           waits, as above
``truncate``       as ``drop``
``malformed``      as above: a bare ``JSONDecodeError``, ``APIResponseValidationError`` of a submit,
                   ``ValueError`` of a poll
================== ===============================================================================

:meth:`LocalTinker.expire_sampler` ends a sampler: ``NotFoundError`` for each later request.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal, get_args

Request = Literal[
    "create_model",
    "load_weights",
    "forward_backward",
    "optim_step",
    "save_weights",
    "save_weights_for_sampler",
    "save_weights_external",
    "asample",
]
"""The kinds of request that the service executes."""

Target = Literal[
    Request,
    "retrieve_future",
    "retrieve_futures",
    "cancel_future",
    "get_info",
    "sampler",
    "join_sampling_session",
    "training_run",
    "training_runs",
    "run_checkpoints",
    "checkpoints",
    "weights_info",
    "copy_weights",
    "delete",
    "set_ttl",
    "publish",
    "unpublish",
    "external_weights_urls",
    "download",
    "create_session",
    "create_sampling_session",
    "session_heartbeat",
    "finish",
    "session",
    "sessions",
    "search_sessions",
    "session_project",
    "audit",
    "billing_usage",
    "storage_usage",
    "config",
    "dynamic_config",
    "token",
    "telemetry",
    "capabilities",
    "health",
]
"""Every kind of HTTP request, by the names in ``stats.by_route``."""

EngineAction = Literal[
    "poison",
    "fail",
    "hang",
    "gone",
    "rollback",
    "fail_session",
    "pause",
    "nan_loss",
    "cold_optimizer",
    "wrong_restore",
]
WireAction = Literal["status", "drop", "slow", "truncate", "malformed", "lost_save"]
Action = Literal[EngineAction, WireAction]
"""See the table above."""

Category = Literal["server", "unknown", "user"]
"""The error category the service reports."""

QueueState = Literal["paused_capacity", "paused_rate_limit"]
"""The reason for a pause that the service reports."""

Body = Literal["text", "shape", "garbage"]
"""The kinds of malformed reply."""

_EXECUTED = get_args(Request)
_OF_A_RUN = (
    "forward_backward",
    "optim_step",
    "save_weights",
    "save_weights_for_sampler",
    "save_weights_external",
)
_ANY = get_args(Target)
RUNLESS = frozenset(_ANY[_ANY.index("create_session") :]) | {"training_runs", "checkpoints"}
"""Requests that belong to no single run."""

STATUSES = tuple(int(status) for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST)


@dataclass(frozen=True, slots=True)
class Spec:
    """The limits of an action.

    Attributes:
        layer: Where it strikes.
        requests: The requests it may strike.
        default: Those it strikes if ``request`` is None.
        takes: The fields of a FaultRule that belong to it.
    """

    layer: Literal["engine", "wire"]
    requests: tuple[str, ...]
    default: tuple[str, ...]
    takes: frozenset[str] = frozenset()


def _engine(*takes: str) -> Spec:
    return Spec("engine", _EXECUTED, _OF_A_RUN, frozenset(takes))


def _only(layer: Literal["engine", "wire"], requests: tuple[str, ...], *takes: str) -> Spec:
    return Spec(layer, requests, requests, frozenset(takes))


SPECS: dict[str, Spec] = {
    "poison": _engine("category", "message", "quiet"),
    "fail": _engine("category", "message"),
    "hang": _engine(),
    "gone": _engine(),
    "rollback": _only("engine", _OF_A_RUN),
    "fail_session": _engine("category", "message"),
    "pause": _engine("queue_state"),
    "nan_loss": _only("engine", ("forward_backward",), "loss", "sticky"),
    "cold_optimizer": _only("engine", ("load_weights",)),
    "wrong_restore": _only("engine", ("load_weights",)),
    "status": _only("wire", _ANY, "status", "message", "retry_after_s", "polled"),
    "drop": _only("wire", _ANY, "polled"),
    "slow": _only("wire", _ANY, "delay_s", "polled"),
    "truncate": _only("wire", _ANY, "silent", "polled"),
    "malformed": _only("wire", _ANY, "body", "polled"),
    "lost_save": _only("wire", ("save_weights",)),
}
"""Every action, by name."""
