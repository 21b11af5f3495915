"""The part of a SupervisedClient's surface that it passes on to the SDK's client."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import tinker
from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture

from tinker_recovery.costs import Meter, tokens_in
from tinker_recovery.errors import NotSupervised, StaleAttempt
from tinker_recovery.service.future import is_client_too, succeeded
from tinker_recovery.service.iteration import Iterations
from tinker_recovery.service.sampler import Source, say_deprecated

if TYPE_CHECKING:
    import threading

    from tinker_recovery.forks import HomeProcess
    from tinker_recovery.run.client_hooks import AttemptHooks


if TYPE_CHECKING:
    _Base = tinker.TrainingClient
else:
    _Base = object


_SAMPLER = "save_weights_for_sampler"


class ClosedClient:
    """What stands for the SDK's client of an attempt that is closed: its id, and no connection."""

    __slots__ = ("_had", "model_id")

    def __init__(self, training: tinker.TrainingClient) -> None:
        self.model_id = training.model_id
        self._had = frozenset(vars(training))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("_") or name in self._had:
            raise StaleAttempt(
                f"{name} of the client of {self.model_id}: its attempt is over, and the client "
                "closed; use attempt.client of the newest attempt"
            )
        return getattr(tinker.TrainingClient, name)  # refused when it is called


class PassedOn(_Base):
    """Every method of ``tinker.TrainingClient`` that a subclass does not define itself."""

    _training: tinker.TrainingClient
    _hooks: AttemptHooks
    _home: HomeProcess
    _turn: threading.Lock
    _iterations: Iterations
    meter: Meter
    _retired: str | None
    _passed_on: set[str]
    first_call_at: float | None
    _held = False

    if TYPE_CHECKING:
        # The subclass has them.

        def _watch(
            self,
            operation: str,
            future: APIFuture[Any],
            step: int | None,
            ended: Callable[[Future[Any]], None] | None = None,
        ) -> APIFuture[Any]: ...

    else:

        @property
        def __class__(self) -> type:
            # As unittest.mock does it: isinstance() holds for both, and nothing is inherited that
            # would go past our counting.
            return tinker.TrainingClient

    @property
    def _lock(self) -> threading.Lock:
        # Asked first: in a forked child it may be held for ever.
        self._home.check(self)
        return self._turn

    def _check_live(self) -> None:
        self._home.check(self)
        if self._retired is not None:
            raise StaleAttempt(
                f"{self!r}: {self._retired}; use attempt.client of the newest attempt"
            )
        if self.first_call_at is None:
            self.first_call_at = time.monotonic()

    def forward(
        self,
        data: list[types.Datum],
        loss_fn: types.LossFnType,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Submit a forward pass, which changes no weights."""
        self._check_live()
        data = list(data)
        running = self._training.forward(data, loss_fn, loss_fn_config)
        self.meter.add("trained", tokens_in(data))
        return self._watch("forward", running, None)

    def hold(self) -> None:
        """Refuse what would train further; from any thread. A save is still queued."""
        self._held = True

    def _check_trains(self) -> None:
        self._check_live()
        if self._held:
            raise StaleAttempt(f"{self!r}: its loop was cancelled; only its last step is saved now")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("load_state"):
            raise NotSupervised(
                f"{name}() would replace the weights of a supervised run, and its step count would "
                "be wrong: start the run with from_checkpoint= instead"
            )
        # The SDK's deprecated `x_async` would bypass our counting: it is `x`, with a warning.
        base = name.removesuffix("_async")
        if base != name and callable(getattr(tinker.TrainingClient, base, None)):
            return functools.partial(_deprecated, base, getattr(self, base))
        attribute = getattr(self._training, name)
        if not callable(attribute) or name.startswith("_"):
            return attribute

        @functools.wraps(attribute)
        def submit(*args: Any, **kwargs: Any) -> Any:
            # Without the lock: some of these block for seconds, but none changes the weights.
            self._check_live()
            step, weights = self._iterations.step, self._iterations.weights
            if name == _SAMPLER and (saved_as := args[0] if args else kwargs.get("name")):
                path = f"tinker://{self._training.model_id}/sampler_weights/{saved_as}"
                self._hooks.saving(path)
            result = attribute(*args, **kwargs)
            if not isinstance(result, APIFuture):
                return result
            saved = functools.partial(self._sampler_saved, step) if name == _SAMPLER else None
            watched = self._watch(name, result, None, saved)
            if not is_client_too(result):
                return watched
            again = functools.partial(attribute, *args, **kwargs)
            if name == "create_sampling_client":
                source = Source(path=args[0] if args else kwargs.get("model_path"))
            else:
                source = Source(step=step, weights=weights)
            # In flight, it is to sample from whatever the newest weights are.
            at = None if kwargs.get("kind") == "inflight" else source.weights
            renew = functools.partial(self._submit_again, name, again, at)
            return self._hooks.sampler(watched, renew, source)

        # Later look-ups find it on the instance.
        self.__dict__[name] = submit
        self._passed_on.add(name)
        return submit

    def _sampler_saved(self, step: int | None, future: Future[Any]) -> None:
        path = getattr(future.result(), "path", None) if succeeded(future) else None
        if path:
            self._hooks.sampler_saved(step, str(path))

    def _submit_again(
        self, name: str, submit: Callable[[], APIFuture[Any]], at: int | None
    ) -> APIFuture[Any] | None:
        """Have a sampling client made again; None if the weights are not those any more."""
        with self._lock:
            if self._retired is not None or (at is not None and self._iterations.weights != at):
                return None
            made = submit()
        return self._watch(name, made, None)


async def _deprecated(name: str, current: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    say_deprecated(name)
    result = current(*args, **kwargs)
    return await result.result_async() if is_client_too(result) else result
