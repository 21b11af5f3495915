"""Every exception the supervision package raises.

::

    SupervisionError
    ├── SpecError (ValueError)       a field that cannot work: names it, its value, what is allowed
    ├── RestartLimitReached          too many restarts; its __cause__ is the last crash
    ├── UnexpectedExit               the reason of an exit without an exception of the child's own
    │   ├── ChildNotReady            the child returned before it was ready
    │   ├── StartTimedOut            it was not ready within its start deadline, and was stopped
    │   └── HeartbeatMissed          the child went silent and was stopped
    ├── SupervisorStopped            the supervisor is not running
    └── ChildError (LookupError)     raised by administration, with the child's id
        ├── ChildNotFound
        ├── ChildAlreadyStarted      start_child: the id is that of a child up or coming up
        ├── ChildAlreadyPresent      start_child: the id is that of a child that is down
        ├── ChildRunning             restart_child, delete_child: it is up
        ├── ChildRestarting          restart_child, delete_child: it is being restarted
        ├── ChildTerminated          start_child, restart_child: stopped before it was ready
        └── TooManyChildren          start_child of a DynamicSupervisor that is full

An exception that a child raises in its start is not wrapped: it is raised unchanged, with a note
(PEP 678) that names the child and the supervisor.

All are :class:`PortableError`: they can be pickled and copied.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ClassVar, Self, TypeVar

_Error = TypeVar("_Error", bound="PortableError")

_TESTED: ContextVar[frozenset[int]] = ContextVar("tinker_recovery_tested", default=frozenset())
"""Ids of what is being pickled to see whether it can be: an exception may lead back to itself."""


class PortableError(Exception):
    """An exception that crosses process boundaries.

    Pickled or deep-copied it keeps its message, its attributes, its notes, ``__cause__``,
    ``__context__`` and ``__suppress_context__``; as with every exception the traceback is left
    behind. What of these cannot be pickled is replaced: an exception by an :class:`ErrorStandIn`,
    alone or in a list or tuple such as ``errors``, and any other value by its repr. An exception
    that is none of ours keeps what pickle keeps of it, which leaves out its own cause.
    ``copy.copy`` replaces nothing.
    """

    redact: ClassVar[Callable[[str], str]] = str
    """What each message passes through when an error is made; a program with secrets sets it."""

    def __init__(self, *args: object) -> None:
        redact = PortableError.redact
        super().__init__(*(redact(each) if isinstance(each, str) else each for each in args))

    def __reduce__(self) -> tuple[Any, ...]:
        stand_ins: dict[int, ErrorStandIn] = {}
        args = _portable(self.args, stand_ins)
        state = {name: _portable(value, stand_ins) for name, value in _state(self).items()}
        return _made, (type(self), args), state

    def __copy__(self) -> Self:
        copied = _made(type(self), self.args)
        copied.__setstate__(_state(self))
        return copied


class ErrorStandIn(PortableError):
    """Stands for an exception that cannot be pickled, or that must not be shown as it is.

    Its message is the name of the other's type and its text.

    Attributes:
        type_name: Module and qualified name of its type.
    """

    def __init__(self, error: BaseException) -> None:
        kind = type(error)
        super().__init__(f"{kind.__qualname__}: {error}")
        self.type_name = f"{kind.__module__}.{kind.__qualname__}"


def _made(kind: type[_Error], args: tuple[object, ...]) -> _Error:
    # Not by its constructor, which may want more than the message.
    error = kind.__new__(kind)
    error.args = args
    return error


def _state(error: BaseException) -> dict[str, Any]:
    return {
        **vars(error),  # the notes are among them
        "__cause__": error.__cause__,
        "__context__": error.__context__,
        "__suppress_context__": error.__suppress_context__,  # behind the cause, which sets it
    }


def _portable(value: Any, stand_ins: dict[int, ErrorStandIn]) -> Any:
    """The value, or what stands for it where it cannot be pickled."""
    if type(value) in (list, tuple):
        return type(value)(_portable(each, stand_ins) for each in value)
    if id(value) in stand_ins:
        return stand_ins[id(value)]
    if id(value) in _TESTED.get():
        return value
    token = _TESTED.set(_TESTED.get() | {id(value)})
    try:
        # Of our own only the class can be in the way; they see to the rest when their turn comes.
        tested = type(value) if isinstance(value, PortableError) else value
        pickle.loads(pickle.dumps(tested))  # noqa: S301 - bytes made here and now
    except Exception:  # noqa: BLE001 - whatever it is, it cannot be pickled
        if not isinstance(value, BaseException):
            return repr(value)
        stand_in = stand_ins[id(value)] = ErrorStandIn(value)
        links = _state(value)
        names = ("__cause__", "__context__", "__suppress_context__", "__notes__")
        stand_in.__setstate__({name: links[name] for name in names if name in links})
        return stand_in
    finally:
        _TESTED.reset(token)
    return value


class SupervisionError(PortableError):
    """Root of all exceptions of this package."""


class SpecError(SupervisionError, ValueError):
    """A field of a child spec or of a supervisor that cannot work.

    Attributes:
        field: The field's name.
        value: The value given.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}={value!r} is not possible: {allowed}")
        self.field = field
        self.value = value


class UnexpectedExit(SupervisionError):
    """The reason of an exit without an exception of the child's own."""


class ChildNotReady(UnexpectedExit):
    """A child returned without having called ``started()`` or ``ignore()``."""


class StartTimedOut(UnexpectedExit):
    """A child was not ready within its ``start_timeout_s``; its start was treated as failed.

    Attributes:
        waited_s: Seconds since it was started.
    """

    def __init__(self, message: str, *, waited_s: float) -> None:
        super().__init__(message)
        self.waited_s = waited_s


class HeartbeatMissed(UnexpectedExit):
    """A child was silent for longer than its heartbeat deadline, and was treated as crashed.

    Attributes:
        silent_s: Seconds since its last sign of life.
    """

    def __init__(self, message: str, *, silent_s: float) -> None:
        super().__init__(message)
        self.silent_s = silent_s


class RestartLimitReached(SupervisionError):
    """A supervisor's children died too often; it stopped them all and gave up.

    Its ``__cause__`` is the exception of the last crash. With nested supervisors that may itself
    be a ``RestartLimitReached``; :attr:`root_cause` is the end of the chain.

    Attributes:
        supervisor: Name of the supervisor that gave up.
        child: Id of the child whose crash exceeded the limit.
        max_restarts: Restarts that were allowed ...
        max_seconds: ... within this many seconds.
        own: Whether that was the child's own budget, and not that of all children together.
    """

    def __init__(
        self,
        *,
        supervisor: str,
        child: str,
        max_restarts: int,
        max_seconds: float,
        cause: BaseException,
        own: bool = False,
    ) -> None:
        who = f"child {child!r}" if own else "its children"
        super().__init__(
            f"supervisor {supervisor!r} gave up: {who} needed more than {max_restarts} "
            f"restarts within {max_seconds:g} s; the last crash was that of {child!r}: {cause!r}"
        )
        self.supervisor = supervisor
        self.child = child
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
        self.own = own
        self.__cause__ = cause

    @property
    def root_cause(self) -> BaseException:
        """The child's own exception at the end of the chain of causes."""
        cause = self.__cause__
        if isinstance(cause, RestartLimitReached):
            return cause.root_cause
        return self if cause is None else cause


class SupervisorStopped(SupervisionError):
    """The supervisor is not running: not entered yet, stopping, or stopped."""


class ChildError(SupervisionError, LookupError):
    """An administrative call that this child's state does not allow.

    Attributes:
        child: The child's id.
    """

    def __init__(self, child: str, message: str) -> None:
        super().__init__(message)
        self.child = child


class ChildNotFound(ChildError):
    """No child has that id: never added, deleted, or a temporary child that ended."""


class ChildAlreadyStarted(ChildError):
    """A child of that id is up, coming up, or being restarted."""


class ChildAlreadyPresent(ChildError):
    """A child of that id exists and is down: use ``restart_child`` or ``delete_child``."""


class ChildRunning(ChildError):
    """The child is up: use ``terminate_child`` first."""


class ChildRestarting(ChildError):
    """The child is being restarted: wait for that, or use ``terminate_child`` first."""


class ChildTerminated(ChildError):
    """The child was stopped before it was ready."""


class TooManyChildren(ChildError):
    """The dynamic supervisor has ``max_children`` already."""
