"""The trail: what the weights of a run were made of, as one digest.

Two attempts whose trails are equal have the same weights, to the bit where the service's training
is exact: they began with the same state, and the same training requests followed. So what was
sampled by the one can stand for what the other would sample.
"""

from __future__ import annotations

import hashlib
import secrets
import threading

from tinker_recovery.checkpoints.lineage import Segment
from tinker_recovery.checkpoints.record import CheckpointRecord
from tinker_recovery.checkpoints.values import encode_value

_BYTES = 16


def digest_of(*parts: str) -> str:
    """A digest of some texts, in their order."""
    digest = hashlib.blake2b(digest_size=_BYTES)
    for part in parts:
        encoded = part.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()


def trail_at_start(
    attempt: Segment, checkpoint: CheckpointRecord | None, *, exact: bool, began_at: int | None
) -> str:
    """The trail of an attempt that has trained nothing yet.

    Args:
        attempt: The attempt.
        checkpoint: What it was restored from; None if the run began, or was started over: not every
            service makes the same weights of the same seed, so nothing from before can stand for
            those of now.
        exact: Whether the optimizer was restored with the weights.
        began_at: The step at which the attempt that saved the checkpoint began; None if unknown.
    """
    if checkpoint is None:
        return digest_of("attempt", attempt.attempt)
    if not exact:
        return digest_of("attempt", attempt.attempt, "weights alone")
    if checkpoint.trail is not None:
        return checkpoint.trail
    if checkpoint.step == began_at and checkpoint.parent is None:
        # Saved before the attempt's first training request, and before anything asked for a trail.
        return digest_of("attempt", checkpoint.attempt)
    return digest_of("checkpoint", checkpoint.path)


class Trail:
    """The trail of one attempt, from one optimizer step to the next; it counts whole iterations.

    Thread-safe; requests are to be noted in their order, under the client's lock.

    Args:
        digest: As it begins, see :func:`trail_at_start`.
        step: Iterations in the weights then.
        follows: Whether it follows the requests from the beginning; if not, from :meth:`follow` on.
    """

    def __init__(self, digest: str, *, step: int, follows: bool) -> None:
        self._lock = threading.Lock()
        self._digest, self._step = digest, step
        self._open: list[str] = []
        self._unseen = False
        self._follows = follows

    @property
    def followed(self) -> str | None:
        """What a checkpoint says of its weights; None if the requests are not followed."""
        return self._digest if self._follows else None

    def position(self) -> tuple[int, str]:
        """How many iterations were ended, and what the weights are made of by now."""
        with self._lock:
            return self._step, self._digest

    def follow(self) -> None:
        """Follow the requests from now on, which costs a little for each."""
        with self._lock:
            if not self._follows and self._unseen:
                # What went before is not known, so these weights are like no others.
                self._digest = digest_of("unknown", secrets.token_hex(_BYTES))
            self._follows = True

    def passed(self, operation: str, *arguments: object) -> None:
        """A training request was submitted: a pass, or the optimizer step's own parameters."""
        with self._lock:
            self._unseen = True
            if not self._follows:
                return
            try:
                said = encode_value([_named(each) for each in arguments], operation)
            except Exception:  # noqa: BLE001 - whatever the loop submits, it is not for this to object
                # A type of the user's own: never equal, rather than wrongly so.
                said = secrets.token_hex(_BYTES)
            self._open.append(digest_of(operation, said))

    def stepped(self, *, skipped: bool, ends: bool = True) -> None:
        """An optimizer step was submitted, or left out; whether an iteration ends with it."""
        with self._lock:
            if self._follows:
                what = "skipped" if skipped else "step"
                self._digest = digest_of(self._digest, what, *self._open)
            self._step += ends
            self._unseen = True
            self._open.clear()

    def ended(self) -> None:
        """An iteration ends behind the newest optimizer step."""
        with self._lock:
            self._step += 1


def _named(argument: object) -> object:
    """A function by its name: a custom loss."""
    if callable(argument):
        return [getattr(argument, name, "") for name in ("__module__", "__qualname__")]
    return argument
