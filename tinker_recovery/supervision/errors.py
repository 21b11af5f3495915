"""Every exception the supervision package raises.

::

    SupervisionError
    ├── SpecError (ValueError)       a field that cannot work: names it, its value, what is allowed
    ├── RestartLimitReached          too many restarts; its __cause__ is the last crash
    ├── UnexpectedExit               the reason of an exit without an exception of the child's own
    │   ├── ChildNotReady            the child returned before it was ready
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
"""

from __future__ import annotations


class SupervisionError(Exception):
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
    """

    def __init__(
        self,
        *,
        supervisor: str,
        child: str,
        max_restarts: int,
        max_seconds: float,
        cause: BaseException,
    ) -> None:
        super().__init__(
            f"supervisor {supervisor!r} gave up: its children needed more than {max_restarts} "
            f"restarts within {max_seconds:g} s; the last crash was that of {child!r}: {cause!r}"
        )
        self.supervisor = supervisor
        self.child = child
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
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
