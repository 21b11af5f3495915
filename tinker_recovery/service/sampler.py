"""The sampling client that a supervised loop is given, and the service client that makes one."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tinker
from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture

from tinker_recovery.costs import length_of
from tinker_recovery.errors import NotSupervised
from tinker_recovery.service.future import succeeded
from tinker_recovery.service.queue_state import watch_sampler
from tinker_recovery.service.sampling import settle

if TYPE_CHECKING:
    from tinker_recovery.service.sampling import Renew, Sampling


@dataclass(frozen=True, slots=True)
class Source:
    """What a sampling client samples from: a path, a base model, or the client's own weights.

    Attributes:
        path: The path.
        base_model: The base model.
        step: The step of the client's own weights.
        weights: Which of its weights, see :attr:`SupervisedClient.weights`.
    """

    path: str | None = None
    base_model: str | None = None
    step: int | None = None
    weights: int | None = None


class SupervisedSampler(tinker.SamplingClient):
    """A SamplingClient whose requests are watched.

    It has every method of ``tinker.SamplingClient``. A request that fails, or of which nothing is
    heard for ``stall_after_s``, is sent once more, to a fresh sampler of the same weights. After a
    recovery, and after its attempt, every request raises StaleAttempt.

    Pickled, or by its handle, it becomes a plain SamplingClient of the other process.

    Args:
        sampling: All sampling of the attempt.
        made: The SDK's.
        renew: Submits the making of a fresh one.
        source: What it samples from.
    """

    def __init__(  # not the SDK's: that one is behind it
        self,
        sampling: Sampling,
        made: tinker.SamplingClient,
        renew: Renew | None,
        source: Source,
    ) -> None:
        self.source = source
        self._sampling = sampling
        self._renew = renew
        self._lock = threading.Lock()
        self._client, self._client_generation = made, 0
        self._fresh: Future[Any] | None = None
        self._generation = 0
        watch_sampler(made, sampling.paused)

    def __repr__(self) -> str:
        return f"<SupervisedSampler of {self._client.get_base_model()}>"

    def __getattr__(self, name: str) -> Any:
        # What the SDK's own __init__ sets, and what a later SDK may add.
        if name.startswith("__") or "_client" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._client, name)

    def newest(self) -> tuple[tinker.SamplingClient, int]:
        """The SDK's client to send a request to, and how many were made before it."""
        return self._client, self._client_generation

    def fresh(self, used: int, reason: str) -> Future[Any] | None:
        """A client made after the one of this number, shared by all who ask; None for none."""
        with self._lock:
            making = self._fresh
            if making is not None and self._generation > used and not _has_failed(making):
                return making
            submitted = None if self._renew is None else self._renew()
            if submitted is None:
                return None
            self._fresh = making = submitted.future()
            self._generation += 1
            taken = functools.partial(self._take, self._generation)
        self._sampling.renewed(self, reason)
        making.add_done_callback(taken)
        return making

    def _take(self, generation: int, made: Future[Any]) -> None:
        if succeeded(made) and generation > self._client_generation:
            self._client, self._client_generation = made.result(), generation
            watch_sampler(self._client, self._sampling.paused)

    def sample(self, *args: Any, **kwargs: Any) -> APIFuture[types.SampleResponse]:
        """As the SDK's."""
        answer = self._sampling.submit(self, lambda client: client.sample(*args, **kwargs))
        prompt = length_of(args[0] if args else kwargs["prompt"])
        answer.add_done_callback(functools.partial(self._count_samples, prompt))
        return answer

    def compute_logprobs(self, *args: Any, **kwargs: Any) -> APIFuture[list[float | None]]:
        """As the SDK's."""
        answer = self._sampling.submit(
            self, lambda client: client.compute_logprobs(*args, **kwargs)
        )
        answer.add_done_callback(self._count_logprobs)
        return answer

    def _count_samples(self, prompt: int, answer: Future[types.SampleResponse]) -> None:
        if succeeded(answer):
            response, model = answer.result(), self.source.base_model or ""
            meter, samples = self._sampling.meter, response.sequences
            # The prompt is read once; for each further sample, the service has it at hand.
            hits = response.prompt_cache_hit_tokens
            meter.add("prompt", prompt - hits, model)
            meter.add("cached", hits + prompt * (len(samples) - 1), model)
            meter.add("sampled", sum(len(each.tokens) for each in samples), model)

    def _count_logprobs(self, answer: Future[list[float | None]]) -> None:
        if succeeded(answer):
            meter, model = self._sampling.meter, self.source.base_model or ""
            meter.add("prompt", len(answer.result()), model)
            meter.add("sampled", 1, model)  # the SDK samples a token to get at them

    async def sample_async(self, *args: Any, **kwargs: Any) -> types.SampleResponse:
        """As the SDK's, deprecated by it."""
        say_deprecated("sample")
        response: types.SampleResponse = await self.sample(*args, **kwargs)
        return response

    async def compute_logprobs_async(self, *args: Any, **kwargs: Any) -> list[float | None]:
        """As the SDK's, deprecated by it."""
        say_deprecated("compute_logprobs")
        logprobs: list[float | None] = await self.compute_logprobs(*args, **kwargs)
        return logprobs

    async def get_base_model_async(self) -> str:
        """As the SDK's, deprecated by it."""
        say_deprecated("get_base_model")
        return self.get_base_model()

    def get_base_model(self) -> str:
        """As the SDK's."""
        return self._client.get_base_model()

    def get_tokenizer(self) -> Any:
        """As the SDK's."""
        return self._client.get_tokenizer()

    def get_sampler_handle(self) -> str:
        """As the SDK's."""
        return self._client.get_sampler_handle()

    def get_telemetry(self) -> Any:
        """As the SDK's."""
        return self._client.get_telemetry()

    def on_queue_state_change(self, *args: Any, **kwargs: Any) -> None:
        """As the SDK's."""
        self._client.on_queue_state_change(*args, **kwargs)

    def __reduce__(self) -> Any:
        return self._client.__reduce__()


def _forwarded(name: str) -> Callable[..., Any]:
    def call(self: SupervisedSamplerFuture, *args: Any, **kwargs: Any) -> Any:
        _say_future_is_no_client()
        return getattr(self.result(), name)(*args, **kwargs)

    return call


def _forwarded_async(name: str) -> Callable[..., Any]:
    async def call(self: SupervisedSamplerFuture, *args: Any, **kwargs: Any) -> Any:
        _say_future_is_no_client()
        return await getattr(await self.result_async(), name)(*args, **kwargs)

    return call


class SupervisedSamplerFuture(APIFuture[SupervisedSampler], tinker.SamplingClient):
    """A future of a :class:`SupervisedSampler` that can, deprecated by the SDK, be used as one.

    Args:
        sampling: All sampling of the attempt.
        making: The future of the SDK's.
        renew: Submits the making of a fresh one.
        source: What it samples from.
    """

    def __init__(  # not the SDK's: that one is behind it
        self,
        sampling: Sampling,
        making: APIFuture[tinker.SamplingClient],
        renew: Renew | None,
        source: Source,
    ) -> None:
        self._source = source
        self._sampling = sampling
        self._making = making
        self._renew = sampling.unless_saved_over(source.path, renew)
        self._lock = threading.Lock()
        self._made: SupervisedSampler | None = None
        self._plain: Future[SupervisedSampler] | None = None

    def __repr__(self) -> str:
        return f"<SupervisedSamplerFuture, {'made' if self._making.future().done() else 'pending'}>"

    def _wrap(self, made: tinker.SamplingClient) -> SupervisedSampler:
        with self._lock:
            if self._made is None:
                self._made = SupervisedSampler(self._sampling, made, self._renew, self._source)
            return self._made

    def result(self, timeout: float | None = None) -> SupervisedSampler:
        """Block for the client; raises the error it could not be made with, or TimeoutError."""
        return self._wrap(self._making.result(timeout))

    async def result_async(self, timeout: float | None = None) -> SupervisedSampler:  # noqa: ASYNC109 - the SDK's signature
        """Wait for the client; raises the error it could not be made with, or TimeoutError."""
        return self._wrap(await self._making.result_async(timeout))

    def future(self) -> Future[SupervisedSampler]:
        """A ``concurrent.futures.Future`` of the client; cancelling it cancels the request."""
        with self._lock:
            if self._plain is not None:
                return self._plain
            plain = self._plain = Future()

        def made(making: Future[tinker.SamplingClient]) -> None:
            if succeeded(making):
                client = self._wrap(making.result())
                with contextlib.suppress(InvalidStateError):
                    plain.set_result(client)
            else:
                settle(plain, making)

        making = self._making.future()
        making.add_done_callback(made)
        plain.add_done_callback(lambda plain: making.cancel() if plain.cancelled() else None)
        return plain

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        _say_future_is_no_client()
        return getattr(self.result(), name)

    sample = _forwarded("sample")
    compute_logprobs = _forwarded("compute_logprobs")
    get_base_model = _forwarded("get_base_model")
    get_tokenizer = _forwarded("get_tokenizer")
    get_sampler_handle = _forwarded("get_sampler_handle")
    get_telemetry = _forwarded("get_telemetry")
    on_queue_state_change = _forwarded("on_queue_state_change")
    __reduce__ = _forwarded("__reduce__")
    sample_async = _forwarded_async("sample_async")
    compute_logprobs_async = _forwarded_async("compute_logprobs_async")
    get_base_model_async = _forwarded_async("get_base_model_async")


class SupervisedService:
    """The ServiceClient of one attempt: its sampling clients are watched, and it ends with it.

    It has every method of ``tinker.ServiceClient`` but ``close``.

    Args:
        sampling: All sampling of the attempt.
        service: The SDK's.
    """

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            return tinker.ServiceClient  # for isinstance(), as that of attempt.client

    def __init__(self, sampling: Sampling, service: tinker.ServiceClient) -> None:
        self._sampling = sampling
        self._service = service

    def __repr__(self) -> str:
        return "<SupervisedService>"

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: Any = None,
        record_stability_info: bool = False,  # noqa: FBT001, FBT002 - the SDK's signature
    ) -> SupervisedSamplerFuture:
        """As the SDK's; the client belongs to the attempt."""
        self._sampling.check_live(self)

        def renew() -> APIFuture[Any]:
            return self._service.create_sampling_client(
                model_path, base_model, retry_config, record_stability_info
            )

        making = renew()
        self._sampling.watch(making.future())
        source = Source(model_path, None if model_path else base_model)
        return SupervisedSamplerFuture(self._sampling, making, renew, source)

    async def create_sampling_client_async(self, *args: Any, **kwargs: Any) -> SupervisedSampler:
        """As the SDK's, deprecated by it."""
        say_deprecated("create_sampling_client")
        client: SupervisedSampler = await self.create_sampling_client(*args, **kwargs)
        return client

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name == "close":
            raise NotSupervised(
                "attempt.service belongs to the attempt, which closes it: leave the attempt's "
                "body, or make a tinker.ServiceClient() of your own"
            )
        self._sampling.check_live(self)
        return getattr(self._service, name)


def _has_failed(making: Future[Any]) -> bool:
    return making.done() and not succeeded(making)


def say_deprecated(instead: str) -> None:
    """Warn, in the name of whoever awaits ``x_async()``, that the SDK deprecates it for ``x()``."""
    warnings.warn(
        f"{instead}_async() is deprecated by the Tinker SDK; use {instead}(), whose future can be "
        "awaited",
        FutureWarning,
        stacklevel=3,
    )


def _say_future_is_no_client() -> None:
    warnings.warn(
        "using the future of a sampling client as the client is deprecated by the Tinker SDK: "
        "await it, or call .result(), first",
        FutureWarning,
        stacklevel=3,
    )
