"""What a recipe gets in an attempt where it asks the SDK for clients, and its log for a logger."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import tinker
from tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture

from tinker_recovery.errors import UsageError

if TYPE_CHECKING:
    from tinker_recovery.run.attempt import Attempt

_T = TypeVar("_T")


@dataclass(slots=True)
class Seat:
    """A recipe in an attempt.

    Attributes:
        attempt: The attempt.
        begins: How the recipe has to ask for its training client, as words for an error.
        asked: The name of the method by which it has to.
        reference: Its reference model, given for the first request for a client of its weights.
        iteration: The iteration under way, for a recipe whose position is that alone.
        loggers: What it logs with, to be closed if it does not come to its end.
    """

    attempt: Attempt
    begins: str
    asked: str
    reference: tinker.SamplingClient | None = None
    iteration: int | None = None
    client: RecipeClient | None = None
    loggers: list[Any] = field(default_factory=list)

    def before_update(self) -> None:
        """An optimizer step of this iteration is about to be submitted."""
        if self.iteration is not None:
            self.attempt.loop_state = {"batch": self.iteration + 1}

    def logged(self, metrics: dict[str, Any], step: int | None) -> None:
        """The recipe has logged a step, with which an iteration ends."""
        if step is None:
            return
        if self.iteration is not None:
            self.iteration = max(self.iteration, step + 1)
            # With few examples, a recipe makes fewer updates than it was given substeps.
            self.attempt.client.end_iteration()
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self.attempt.report(**numbers)


SEAT: ContextVar[Seat | None] = ContextVar("tinker_recovery_recipe", default=None)
"""The recipe that runs in this context; tasks and threads of its own inherit it."""


def given(value: _T) -> APIFuture[_T]:
    """A future of the SDK's kind that has its result already."""
    future: Future[_T] = Future()
    future.set_result(value)
    return AwaitableConcurrentFuture(future)


class RecipeClient:
    """The attempt's client, as a recipe gets it."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._client = seat.attempt.client

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            return tinker.TrainingClient  # for isinstance(), as that of attempt.client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def optim_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the SDK's; what is saved behind it says which iteration it ends."""
        self._seat.before_update()
        return self._client.optim_step(*args, **kwargs)

    async def optim_step_async(self, *args: Any, **kwargs: Any) -> Any:
        """As the SDK's."""
        self._seat.before_update()
        client: Any = self._client
        return await client.optim_step_async(*args, **kwargs)

    def save_weights_and_get_sampling_client(self, *args: Any, **kwargs: Any) -> Any:
        """As the SDK's; the first is the reference of a recipe that has one."""
        reference, self._seat.reference = self._seat.reference, None
        if reference is not None:
            return given(reference)
        return self._client.save_weights_and_get_sampling_client(*args, **kwargs)


class RecipeService:
    """A ServiceClient of the attempt, as a recipe makes it, and ends it."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            return tinker.ServiceClient  # for isinstance(), as that of attempt.client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The attempt closes its clients."""

    def close(self, *_: object, **__: object) -> APIFuture[None]:
        """The attempt closes its clients."""
        return given(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seat.attempt.service, name)

    def create_lora_training_client(self, *_: object, **__: object) -> APIFuture[RecipeClient]:
        """The attempt's client."""
        return self._give("create_lora_training_client")

    def create_training_client_from_state(
        self, *_: object, **__: object
    ) -> APIFuture[RecipeClient]:
        """The attempt's client."""
        return self._give("create_training_client_from_state")

    def create_training_client_from_state_with_optimizer(
        self, *_: object, **__: object
    ) -> APIFuture[RecipeClient]:
        """The attempt's client."""
        return self._give("create_training_client_from_state_with_optimizer")

    def _give(self, asked: str) -> APIFuture[RecipeClient]:
        seat = self._seat
        if seat.client is not None:
            raise UsageError(
                "the recipe asks for a second training client: only recipes that train one are "
                "known"
            )
        if asked != seat.asked:
            raise UsageError(
                f"the recipe asks for its client by {asked}(), but {seat.begins}: this version of "
                "the cookbook is not known"
            )
        seat.client = RecipeClient(seat)
        return given(seat.client)


class _Instead(ModuleType):
    """A module as a recipe sees it, with one function of it replaced inside attempts."""

    def __init__(self, module: ModuleType, name: str, instead: Callable[..., Any]) -> None:
        super().__init__(module.__name__)
        self.__dict__["_module"] = module
        self.__dict__[name] = instead

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


def _service_client(*args: Any, **kwargs: Any) -> Any:
    seat = SEAT.get()
    return tinker.ServiceClient(*args, **kwargs) if seat is None else RecipeService(seat)


_SEATED: dict[str, tuple[int, dict[str, Any]]] = {}
"""By module: how many recipes run in it, and what its names were before the first of them."""

_TURN = threading.Lock()


@contextlib.contextmanager
def seated(module: ModuleType) -> Iterator[None]:
    """Inside, a recipe's module makes clients and loggers by way of :data:`SEAT`.

    Only the names ``tinker`` and ``ml_log`` of that one module change, and code outside a recipe
    gets what it would without. They are restored by the last recipe of the module that ends.
    """
    name = module.__name__
    with _TURN:
        running, before = _SEATED.get(name, (0, {}))
        if not running:
            before = {each: getattr(module, each) for each in ("tinker", "ml_log")}
            vars(module).update(_instead_of(**before))
        _SEATED[name] = running + 1, before
    try:
        yield
    finally:
        with _TURN:
            running, before = _SEATED.pop(name)
            if running > 1:
                _SEATED[name] = running - 1, before
            else:
                vars(module).update(before)


def _instead_of(tinker: ModuleType, ml_log: Any) -> dict[str, ModuleType]:
    def setup_logging(*args: Any, **kwargs: Any) -> Any:
        made, seat = ml_log.setup_logging(*args, **kwargs), SEAT.get()
        if seat is not None:
            seat.loggers.append(made)
            log_metrics = made.log_metrics

            def logged(metrics: dict[str, Any], step: int | None = None) -> None:
                log_metrics(metrics, step)
                seat.logged(metrics, step)

            made.log_metrics = logged
        return made

    return {
        "tinker": _Instead(tinker, "ServiceClient", _service_client),
        "ml_log": _Instead(ml_log, "setup_logging", setup_logging),
    }
