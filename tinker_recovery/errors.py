"""Every exception tinker_recovery raises.

::

    TinkerRecoveryError
    ├── UsageError (ValueError)          an argument or a call order we refuse at once
    │   ├── NotSupervised (AttributeError)  a method of the SDK's that a supervised client lacks
    │   └── AmbiguousRun                 the service has several runs of a name: choose one
    ├── ServiceUnusable                  the address or the credential of the service is wrong
    ├── DeadlineExceeded (TimeoutError)  a deadline of ours passed while the service worked
    ├── StatusError                      the service's word on a run could not be read
    │   ├── StatusUnavailable            connection, timeout, 408, 429, 5xx: trying again may help
    │   └── StatusRefused                any other 4xx, or a reply that makes no sense
    ├── CheckpointError
    │   ├── ContradictoryCheckpoints     checkpoints that name one run cannot all be of it
    │   ├── InvalidMetadata              a checkpoint's metadata says something impossible
    │   └── NoUsableCheckpoint           nothing to recover from, and starting over is not possible
    ├── OtherWeights                     the canary objects to a restore, which is tried again
    ├── FaultError                       a fault that nothing raised: it was observed
    │   ├── CorruptedRun                 the service reports the run as corrupted
    │   └── NonFiniteLoss                the loss became NaN or infinite
    ├── JournalError                     what must survive this process cannot be read or written
    ├── StaleAttempt                     a call through the client of an attempt that is over
    ├── RunFinished                      a run of this name has come to its end before
    ├── JobFailed                        a job failed, and is not tried again
    ├── JobCancelled                     a job was cancelled
    ├── RunHeld                          another process trains the run (on_lease="refuse")
    └── RunFailed                        the run is over and was not recovered
        ├── LeaseLost                    another process has taken the run over
        ├── RecoveryExhausted            max_attempts are spent; carries every attempt's error
        ├── RecoveryRefused              the service refuses the recovery for good (401, 402, ...)
        └── RecoveryLost                 the loop was left (break, return) while it had to run again

Errors of the supervision tree live in :mod:`tinker_recovery.supervision`, which knows nothing of
training. What the SDK or the user's own code raises is never wrapped in any of these, except where
a run begins: there ServiceUnusable says it in one line, and is raised from it.

All can be pickled and copied, with what they were raised from. Some errors of the SDK, such as
``tinker.APITimeoutError``, cannot, and as a cause or in ``errors`` each is replaced by a
:class:`~tinker_recovery.supervision.errors.ErrorStandIn` with its type's name and its text; see
:class:`~tinker_recovery.supervision.errors.PortableError`. No message holds a secret known to
:mod:`~tinker_recovery.telemetry.redaction`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from tinker_recovery.supervision.errors import PortableError


class TinkerRecoveryError(PortableError):
    """Root of everything this package raises."""


class UsageError(TinkerRecoveryError, ValueError):
    """An argument or a call order that cannot work; says the field, the value and what is allowed.

    Raised before anything starts, so nothing has to be undone.
    """


class NotSupervised(UsageError, AttributeError):
    """A method of the SDK's client that a supervised one does not have; says what to do instead.

    An AttributeError as well, so that ``hasattr`` is False.
    """


class AmbiguousRun(UsageError):
    """Which run of a name is meant has to be said by ``lineage=``; the message lists those there.

    Attributes:
        run: The name.
        lineages: The lineages that the service has of it, the newest first.
    """

    def __init__(self, message: str, *, run: str, lineages: Sequence[str]) -> None:
        super().__init__(message)
        self.run = run
        self.lineages = tuple(lineages)


class ServiceUnusable(TinkerRecoveryError):
    """No run can begin: the service refuses the credential, cannot be reached, or is no service.

    The message says which address and which credential were tried, and what to do. Its cause is
    what the SDK raised, without the tracebacks below.

    Attributes:
        details: The whole chain with its tracebacks, as text.
    """

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class DeadlineExceeded(TinkerRecoveryError, TimeoutError):
    """An operation of ours on the service outlived its deadline.

    Attributes:
        operation: What was being done, in words.
        deadline_s: The deadline in seconds.
    """

    def __init__(self, operation: str, deadline_s: float) -> None:
        super().__init__(f"{operation} took longer than its deadline of {deadline_s:g} s")
        self.operation = operation
        self.deadline_s = deadline_s


class StatusError(TinkerRecoveryError):
    """The service's word on a run or its checkpoints could not be read.

    Attributes:
        status_code: The HTTP status, or None when no reply came.
    """

    def __init__(self, message: str, *, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


ANSWERED = 200
"""The status of a StatusUnavailable where the service answers, and lacks what it has stored."""


class StatusUnavailable(StatusError):
    """No answer, or one that says "later": trying again may help."""


class StatusRefused(StatusError):
    """An answer that trying again will not change."""


class ExportError(TinkerRecoveryError):
    """A checkpoint could not be exported or published; the run and the checkpoint are untouched."""


class ExportUnavailable(ExportError):
    """Trying again may help: the hub is out of reach, a disk is full."""


class ExportRefused(ExportError):
    """Trying again will not change it: a format that does not fit, a token that is refused."""


class CheckpointError(TinkerRecoveryError):
    """Something is wrong with a checkpoint."""


class InvalidMetadata(CheckpointError):
    """A checkpoint carries our metadata, but it contradicts itself or cannot be parsed."""


class ContradictoryCheckpoints(CheckpointError):
    """Checkpoints that name one run cannot all be of it, so nothing is resumed from them.

    Attributes:
        paths: Those that contradict each other; one alone if it contradicts itself.
    """

    def __init__(self, message: str, *, paths: Sequence[str]) -> None:
        super().__init__(message)
        self.paths = tuple(paths)


class NoUsableCheckpoint(CheckpointError):
    """There is nothing to recover from; the message says what was looked at, and why refused."""


class JournalError(TinkerRecoveryError):
    """The journal cannot be opened, read or written; the message says why and what to do.

    Attributes:
        details: What it was raised from, with its traceback, as text.
    """

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class OtherWeights(TinkerRecoveryError):
    """By the canary's answer the weights of a new client are not those they should be.

    A run that started over did not begin as it had begun, or the answer was no number.
    """


class FaultError(TinkerRecoveryError):
    """A fault that nothing raised: it was read from the service, or observed.

    Attributes:
        kind: The fault's kind, as in the table of faults.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class CorruptedRun(FaultError):
    """The service reports a run as corrupted: nothing was raised, its status says so.

    Attributes:
        run_id: The Tinker run id.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the service reports Tinker run {run_id} as corrupted", kind="corrupted")
        self.run_id = run_id


class NonFiniteLoss(FaultError):
    """The loss of a step became NaN or infinite, and the policy guards it.

    Attributes:
        step: The loop's step.
        value: The loss.
    """

    def __init__(self, step: int, value: float) -> None:
        super().__init__(f"the loss of step {step} is {value}", kind="loss_not_finite")
        self.step = step
        self.value = value


class StaleAttempt(TinkerRecoveryError):
    """A request was submitted through the client of an attempt that has ended.

    After a fault the old client must not be used again: use ``attempt.client`` of the new attempt.
    """


class RunFinished(TinkerRecoveryError):
    """A run of this name has come to its end before, so there is nothing to train.

    Attributes:
        run: The run's name.
        checkpoint: Path of its newest checkpoint; None if it saved none.
        step: Optimizer steps it had done.
    """

    def __init__(self, message: str, *, run: str, checkpoint: str | None, step: int) -> None:
        super().__init__(message)
        self.run = run
        self.checkpoint = checkpoint
        self.step = step


class RunHeld(TinkerRecoveryError):
    """Another process trains the run, and ``on_lease="refuse"`` says not to wait for it.

    Attributes:
        run: The run's name.
        pid: The process.
        host: Its machine.
        since: Seconds since the epoch at which it took the run.
        expires: The same, at which it is held to be gone unless it says otherwise.
    """

    def __init__(
        self, message: str, *, run: str, pid: int, host: str, since: float, expires: float
    ) -> None:
        super().__init__(message)
        self.run = run
        self.pid = pid
        self.host = host
        self.since = since
        self.expires = expires


class JobFailed(TinkerRecoveryError):
    """A job failed, and is not tried again.

    Attributes:
        job: Its name.
        error: The class of what its last try failed with, ``module.Name``.
        tries: How often it was tried.
        checkpoint: Path of its newest checkpoint; None if that is not known.
    """

    def __init__(
        self, message: str, *, job: str, error: str, tries: int, checkpoint: str | None
    ) -> None:
        super().__init__(message)
        self.job = job
        self.error = error
        self.tries = tries
        self.checkpoint = checkpoint


class JobCancelled(TinkerRecoveryError):
    """A job was cancelled.

    Attributes:
        job: Its name.
    """

    def __init__(self, message: str, *, job: str) -> None:
        super().__init__(message)
        self.job = job


class RunFailed(TinkerRecoveryError):
    """The run is over and was not recovered.

    Attributes:
        run: The run's name.
        errors: Every error on the way, oldest first; the last is also ``__cause__``.
    """

    def __init__(self, message: str, *, run: str, errors: Sequence[BaseException] = ()) -> None:
        super().__init__(message)
        self.run = run
        self.errors = tuple(errors)
        if self.errors:
            self.__cause__ = self.errors[-1]


class LeaseLost(RunFailed):
    """Another process has taken the run over, so this one must not train it any further.

    It happens where this one gave no sign of life for as long as its lease in the journal, or its
    claim at the service, lasts without one: it was paused, or cut off. It recovers, saves and
    deletes nothing of the run any more; the message names the process that has it now, if that is
    known. Raised as well where the service knows nothing of the run any more, with what to do.
    """


class RecoveryExhausted(RunFailed):
    """``max_attempts`` recoveries were tried without a newer checkpoint in between."""


class RecoveryRefused(RunFailed):
    """A recovery met an answer that trying again cannot change; its cause is that answer."""


class RecoveryLost(RunFailed):
    """A fault came to light after the loop had been left, so it could not be run again.

    A ``break`` or ``return`` inside ``async with attempt:`` leaves the loop for good; when the
    requests still open at that moment fail, no code is left to replay them.
    """


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from, outermost first; ends even on a cycle."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def drop_frames(errors: Iterable[BaseException]) -> None:
    """Drop the tracebacks of errors, and of all that they came of or consist of.

    A traceback holds each frame it passed, with all local variables: clients, batches, answers.
    """
    left, seen = list(errors), set[int]()
    while left:
        error = left.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        error.__traceback__ = None
        left += filter(None, (error.__cause__, error.__context__))
        if isinstance(error, BaseExceptionGroup):
            left += error.exceptions


_VARIES = re.compile(r"[0-9a-f]*[0-9][0-9a-f.]*")


def folded(said: Iterable[str]) -> str:
    """Sentences in their order, joined by semicolons; those that repeat one are counted instead.

    One that differs from an earlier one in numbers and ids alone repeats it ("51 times alike").
    """
    alike: dict[str, list[str]] = {}
    for text in said:
        alike.setdefault(_VARIES.sub("#", text), []).append(text)
    return "; ".join(_counted(texts) for texts in alike.values())


def _counted(texts: list[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    how = "" if len(set(texts)) == 1 else " alike"
    return f"{texts[0]} ({len(texts)} times{how})"
