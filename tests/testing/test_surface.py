"""Every public method of the installed SDK's clients is served by the local server, or listed."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import anyio.to_thread
import pytest
import tinker
from custom_losses import do_without_pytorch, squared
from loops import ADAM, MODEL, batch
from sdk_loops import a_service, fresh, train
from tinker import types
from tinker.lib.api_future_impl import QueueState
from tinker.lib.public_interfaces.sampling_client import SamplingClient

from tinker_recovery.testing import LocalTinker, LocalTokenizer
from tinker_recovery.testing._losses import OFFERED

pytestmark = [
    # Half of the methods are deprecated; each has to be served for as long as it is there.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::tinker.lib.experimental.ExperimentalWarning"),
]

DOCS = Path(__file__).parents[2] / "docs" / "testing.md"
PROMPT = types.ModelInput.from_ints([3, 14, 15])
PARAMS = types.SamplingParams(max_tokens=4, seed=1, stop=[])

CLIENTS: dict[str, type] = {
    name: getattr(tinker, name) for name in tinker.__all__ if name.endswith("Client")
}


@dataclass
class Kit:
    """A server, a client of each kind, and a checkpoint of each kind."""

    local: LocalTinker
    clients: dict[str, Any]
    path: str
    for_sampling: str
    sampler_id: str
    names: int = field(default=0)

    def name(self) -> str:
        """A name that no checkpoint has yet."""
        self.names += 1
        return f"made-{self.names}"

    @property
    def run(self) -> str:
        """The run's id."""
        return str(self.clients["TrainingClient"].model_id)

    @property
    def session(self) -> str:
        """The session's id."""
        return self.run.partition(":")[0]

    async def saved(self) -> str:
        """The path of a new checkpoint."""
        return str((await self.clients["TrainingClient"].save_state(self.name())).path)

    async def exported(self) -> str:
        """The path of a new export."""
        client = self.clients["TrainingClient"]
        return str((await client.save_weights_external(self.name())).path)


@asynccontextmanager
async def a_kit() -> AsyncIterator[Kit]:
    async with LocalTinker(jwt=True) as local, a_service(local) as service:
        client = await fresh(service)
        await train(client, 0, 2)
        path = (await client.save_state("kept")).path
        for_sampling = (await client.save_weights_for_sampler("sampled")).path
        sampler = await service.create_sampling_client(model_path=for_sampling)
        apart = [
            await anyio.to_thread.run_sync(make)
            for make in (
                lambda: tinker.RestClient(base_url=local.base_url, api_key=local.api_key),
                lambda: tinker.AdminClient(base_url=local.base_url, api_key=local.api_key),
            )
        ]
        every: list[Any] = [service, client, sampler, *apart]
        clients = {type(one).__name__: one for one in every}
        try:
            yield Kit(local, clients, path, for_sampling, local.samplers()[0])
        finally:
            for one in every[-2:]:
                await anyio.to_thread.run_sync(one.holder.close)


async def delete_by_id(kit: Kit, method: Any) -> object:
    path = await kit.saved()
    return await answer(method(kit.run, f"weights/{path.rpartition('/')[2]}"))


async def of_saved(kit: Kit, method: Any) -> object:
    return await answer(method(await kit.saved()))


async def unpublish(kit: Kit, method: Any) -> object:
    path = await kit.saved()
    kit.local.publish(path)
    return await answer(method(path))


async def urls(kit: Kit, method: Any) -> object:
    return await answer(method(await kit.exported()))


async def copied(kit: Kit, method: Any) -> object:
    del method  # of a client with a project
    service = tinker.ServiceClient(
        project_id="other", base_url=kit.local.base_url, api_key=kit.local.api_key
    )
    try:
        return await service.copy_weights(kit.for_sampling)
    finally:
        await service.close("success")


async def by_handle(kit: Kit, method: Any) -> object:
    handle = kit.clients["SamplingClient"].get_sampler_handle()
    client = await anyio.to_thread.run_sync(lambda: method(handle, api_key=kit.local.api_key))
    try:
        return await client.sample(PROMPT, 1, PARAMS)
    finally:
        client.holder.close()


async def close(kit: Kit, method: Any) -> object:
    del method  # the kit's own service is still needed
    async with a_service(kit.local):
        return None


def this_hour() -> tuple[datetime, datetime]:
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return start, start + timedelta(hours=2)


def finite(output: Any) -> bool:
    return math.isfinite(output.metrics["loss:sum"])


def trains(client: Any) -> bool:
    return isinstance(client, tinker.TrainingClient)


def samples(client: Any) -> bool:
    return isinstance(client, SamplingClient)


def none(value: Any) -> bool:
    return value is None


def text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


Entry = tuple[Callable[[Kit, Any], object], Callable[[Any], object]]
"""How a method is called, and whether what it answered is sensible."""

OF_EACH: dict[str, Entry] = {
    "get_telemetry": (lambda _, f: f(), none),  # the tests turn it off
    "get_tokenizer": (
        lambda _, f: f(),
        lambda found: found.encode("fine.") == LocalTokenizer().encode("fine."),
    ),
    "get_console_url": (lambda _, f: f(), text),
    "get_audit_log": (lambda _, f: f(), lambda found: found.entries),
    "get_billing_usage": (lambda _, f: f(*this_hour()), lambda found: found.data),
    "get_current_checkpoint_storage_usage": (lambda _, f: f(), lambda found: found.data),
    "get_server_capabilities": (
        lambda _, f: f(),
        lambda found: found.supported_models[0].model_name == MODEL,
    ),
}

CALLS: dict[str, dict[str, Entry]] = {
    "TrainingClient": {
        "forward": (lambda _, f: f(batch(0), "cross_entropy"), finite),
        "forward_backward": (lambda _, f: f(batch(0), "cross_entropy"), finite),
        "forward_backward_custom": (
            lambda _, f: f(batch(0), squared),
            lambda found: found.metrics["squared"] == found.metrics["loss:sum"],
        ),
        "optim_step": (lambda _, f: f(ADAM), lambda found: found is not None),
        "save_state": (lambda k, f: f(k.name()), lambda found: "/weights/" in found.path),
        "save_weights_for_sampler": (
            lambda k, f: f(k.name()),
            lambda found: "/sampler_weights/" in found.path,
        ),
        "save_weights_external": (
            lambda k, f: f(k.name()),
            lambda found: "/external_weights/" in found.path,
        ),
        "save_weights_and_get_sampling_client": (lambda _, f: f(), samples),
        "create_sampling_client": (lambda k, f: f(k.for_sampling), samples),
        "get_info": (lambda _, f: f(), lambda found: found.model_data.model_name == MODEL),
    },
    "SamplingClient": {
        "create": (lambda k, f: f(k.clients["ServiceClient"].holder, base_model=MODEL), samples),
        "sample": (
            lambda _, f: f(PROMPT, 2, PARAMS),
            lambda found: [len(one.tokens) for one in found.sequences] == [4, 4],
        ),
        "compute_logprobs": (lambda _, f: f(PROMPT), lambda found: len(found) == 3),
        "get_base_model": (lambda _, f: f(), lambda found: found == MODEL),
        "get_sampler_handle": (lambda _, f: f(), text),
        "from_sampler_handle": (by_handle, lambda found: len(found.sequences) == 1),
        "on_queue_state_change": (
            lambda _, f: f(QueueState.ACTIVE, None),
            none,
        ),
    },
    "ServiceClient": {
        "holder": (lambda _, holder: holder.get_session_id(), text),
        "create_lora_training_client": (lambda _, f: f(MODEL, rank=8), trains),
        "create_training_client_from_state": (lambda k, f: f(k.path), trains),
        "create_training_client_from_state_with_optimizer": (lambda k, f: f(k.path), trains),
        "create_sampling_client": (lambda k, f: f(model_path=k.for_sampling), samples),
        "create_rest_client": (lambda _, f: f(), lambda found: hasattr(found, "list_sessions")),
        "copy_weights": (
            copied,
            lambda found: found.endswith("/sampler_weights/sampled"),
        ),
        "close": (close, none),
    },
    "RestClient": {
        "get_training_run": (lambda k, f: f(k.run), lambda found: found.base_model == MODEL),
        "get_training_run_by_tinker_path": (
            lambda k, f: f(k.path),
            lambda found: found.base_model == MODEL,
        ),
        "get_weights_info_by_tinker_path": (
            lambda k, f: f(k.path),
            lambda found: found.lora_rank == 8,
        ),
        "list_training_runs": (lambda _, f: f(), lambda found: found.training_runs),
        "list_checkpoints": (lambda k, f: f(k.run), lambda found: found.checkpoints),
        "list_user_checkpoints": (lambda _, f: f(), lambda found: found.checkpoints),
        "get_external_weights_urls": (urls, lambda found: found.urls),
        "delete_checkpoint": (delete_by_id, none),
        "delete_checkpoint_from_tinker_path": (of_saved, none),
        "publish_checkpoint_from_tinker_path": (of_saved, none),
        "unpublish_checkpoint_from_tinker_path": (unpublish, none),
        "set_checkpoint_ttl_from_tinker_path": (lambda k, f: f(k.path, 3600), none),
        "get_session": (lambda k, f: f(k.session), lambda found: found.training_run_ids),
        "list_sessions": (lambda _, f: f(), lambda found: found.sessions),
        "search_sessions": (
            lambda k, f: f(types.SessionSearchRequest(session_id=k.session)),
            lambda found: len(found.sessions) == 1,
        ),
        "assign_session_project": (lambda k, f: f(k.session, "other"), none),
        "copy_weights": (
            lambda k, f: f(k.path, "other"),
            lambda found: found.endswith("/weights/kept"),
        ),
        "whoami": (lambda _, f: f(), lambda found: "local" in found.org_urn),
        "get_sampler": (
            lambda k, f: f(k.sampler_id),
            lambda found: found.model_path is not None,
        ),
    },
}
"""By client and method; ``x_async`` is called as ``x`` is."""


async def answer(value: Any) -> Any:
    """What a method has answered once all that it returned is waited for."""
    while inspect.isawaitable(value):
        value = await value
    return value


def methods(client: str) -> list[str]:
    """The public methods of a client, and its properties."""
    return [name for name in dir(CLIENTS[client]) if not name.startswith("_")]


def entry(client: str, method: str) -> Entry | None:
    """How it is called."""
    plain = method.removesuffix("_async")
    return CALLS.get(client, {}).get(plain) or OF_EACH.get(plain)


def listed() -> set[str]:
    """What the documentation says is not served; each row has a reason."""
    section = DOCS.read_text().partition("## What is not served")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| (.+) \|$", section, re.MULTILINE)
    assert all(len(reason) > 15 for _, reason in rows)
    return {name for names, _ in rows for name in re.findall(r"`([^`]+)`", names)}


@pytest.mark.parametrize("client", CLIENTS)
def test_each_public_method_of_the_sdk_is_served_or_listed_with_a_reason(client: str) -> None:
    served = {name for name in methods(client) if entry(client, name)}
    named = {f"{client}.{name}" for name in methods(client)}
    not_served = {each for each in named if each.removesuffix("_async") in listed()}
    assert {f"{client}.{name}" for name in served} == named - not_served


def test_nothing_is_listed_that_the_sdk_does_not_have() -> None:
    every = {f"{client}.{name}" for client in CLIENTS for name in methods(client)}
    assert listed() - every == {f"loss {name}" for name in get_args(types.LossFnType)} - {
        f"loss {name}" for name in OFFERED
    }


def offline(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let get_tokenizer() find the kit's tokenizer, as a process that begins with it does."""
    variables = LocalTokenizer.write_cache(folder, MODEL)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # Another test may have had it read them.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", variables["HF_HUB_CACHE"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("client", CLIENTS)
async def test_each_method_that_is_served_answers_something_sensible(
    client: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offline(monkeypatch, tmp_path)
    do_without_pytorch(monkeypatch)
    async with a_kit() as kit:
        for name in methods(client):
            found = entry(client, name)
            if found is None:
                continue
            call, sensible = found
            method = getattr(kit.clients[client], name)
            with anyio.fail_after(60):  # the first tokenizer imports transformers
                answered = await answer(await anyio.to_thread.run_sync(call, kit, method))
            assert sensible(answered), f"{client}.{name} answered {answered!r}"
