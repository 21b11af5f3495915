"""Sampling at the local server, by the unmodified SDK's clients."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import pytest
import tinker
from loops import MODEL, until
from sdk_loops import a_service, fresh, train
from test_exports import HOUR_S, Wall, a_rest_client
from tinker import types
from tinker.lib.public_interfaces.sampling_client import SamplingClient

from tinker_recovery.testing import (
    FaultRule,
    LocalTinker,
    LocalTinkerProcess,
    LocalTokenizer,
    actions,
)

PROMPT = types.ModelInput.from_ints([3, 14, 15, 9, 26])


def params(**given: object) -> types.SamplingParams:
    return types.SamplingParams.model_validate({"max_tokens": 12, "seed": 5, "stop": [], **given})


async def of_path(service: tinker.ServiceClient, path: str) -> SamplingClient:
    sampler: SamplingClient = await service.create_sampling_client(model_path=path)
    return sampler


async def of_base(service: tinker.ServiceClient) -> SamplingClient:
    sampler: SamplingClient = await service.create_sampling_client(base_model=MODEL)
    return sampler


async def test_the_same_weights_prompt_seed_and_index_give_the_same_tokens() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        await train(client, 0, 5)
        saved = await client.save_weights_for_sampler("five")
        first, again = await of_path(service, saved.path), await of_path(service, saved.path)
        one = await first.sample(PROMPT, 3, params())
        two = await again.sample(PROMPT, 3, params())
        other = await first.sample(PROMPT, 3, params(seed=6))
        free = [await first.sample(PROMPT, 3, params(seed=None)) for _ in range(2)]
        assert [s.tokens for s in one.sequences] == [s.tokens for s in two.sequences]
        assert [s.logprobs for s in one.sequences] == [s.logprobs for s in two.sequences]
        assert len({tuple(s.tokens) for s in (*one.sequences, *other.sequences)}) == 6
        assert len({tuple(s.tokens) for reply in free for s in reply.sequences}) == 6
        assert len({s.sequence_id for s in (*one.sequences, *other.sequences)}) == 6


async def test_logprobs_of_samples_are_those_of_compute_logprobs_and_of_forward() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        await train(client, 0, 5)
        sampler = await client.save_weights_and_get_sampling_client()
        sampled = (await sampler.sample(PROMPT, 1, params(temperature=0.5))).sequences[0]
        whole = PROMPT.to_ints() + sampled.tokens
        computed = await sampler.compute_logprobs(types.ModelInput.from_ints(whole))
        datum = types.Datum(
            model_input=types.ModelInput.from_ints(whole[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(
                    data=whole[1:], dtype="int64", shape=[len(whole) - 1]
                )
            },
        )
        forward = (await client.forward([datum], "cross_entropy")).loss_fn_outputs[0]["logprobs"]
        assert computed[0] is None
        assert computed[-len(sampled.tokens) :] == sampled.logprobs
        np.testing.assert_allclose(np.array(computed[1:], float), forward.data, atol=1e-5)


async def test_how_it_is_drawn_is_as_asked() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        sampler = await of_base(service)
        greedy = (await sampler.sample(PROMPT, 1, params(temperature=0))).sequences[0].tokens
        for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
            assert (await sampler.sample(PROMPT, 1, params(**narrow))).sequences[0].tokens == greedy
        stopped = await sampler.sample(PROMPT, 1, params(temperature=0, stop=[greedy[2]]))
        assert stopped.sequences[0].tokens == greedy[:3]
        assert stopped.sequences[0].stop_reason == "stop"
        text = local.tokenizer.decode(greedy[1:3])
        by_text = await sampler.sample(PROMPT, 1, params(temperature=0, stop=text))
        assert by_text.sequences[0].tokens == greedy[:3]
        whole = await sampler.sample(PROMPT, 1, params(temperature=0))
        assert whole.sequences[0].stop_reason == "length"
        assert len(whole.sequences[0].tokens) == 12


async def test_logprobs_of_the_prompt_and_of_other_tokens_come_with_a_sample() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        sampler = await of_base(service)
        ids = np.array([[1, -1], [2, 9], [-1, -1], [26, 7]], np.int64)
        reply = await sampler.sample(
            PROMPT,
            1,
            params(max_tokens=1),
            include_prompt_logprobs=True,
            topk_prompt_logprobs=3,
            topk_sample_logprobs=2,
            target_prompt_logprobs=types.TensorData.from_numpy(ids),
            prompt_alt_tokens_k=4,
        )
        every = reply.prompt_logprobs
        assert every is not None
        assert reply.topk_prompt_logprobs is not None
        assert every[0] is reply.topk_prompt_logprobs[0] is None
        assert [len(row or []) for row in reply.topk_prompt_logprobs] == [0, 3, 3, 3, 3]
        assert reply.sequences[0].topk_logprobs is not None
        assert len(reply.sequences[0].topk_logprobs[0] or []) == 2
        assert reply.target_prompt_logprobs is not None
        target = np.array(reply.target_prompt_logprobs.data).reshape(4, 2)
        assert target[0, 1] == target[2, 0] == 0
        assert target[3, 0] == every[4]
        assert target[1, 1] != 0
        assert reply.prompt_alt_tokens is not None
        assert reply.prompt_alt_tokens.tokens.shape == [4, 4]
        last = await sampler.compute_logprobs(PROMPT, prompt_logprobs_last_n=2)
        assert last == [None, None, None, *every[3:]]


async def test_a_sampler_keeps_its_weights_while_training_continues() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        sampler = await client.save_weights_and_get_sampling_client()
        before = await sampler.compute_logprobs(PROMPT)
        await train(client, 0, 3)
        after = await client.save_weights_and_get_sampling_client()
        assert await sampler.compute_logprobs(PROMPT) == before
        assert await after.compute_logprobs(PROMPT) != before


async def test_weights_for_samplers_are_listed_expire_and_are_deleted() -> None:
    wall = Wall()
    async with (
        LocalTinker(wall=wall) as local,
        a_service(local) as service,
        a_rest_client(local) as rest,
    ):
        client = await fresh(service)
        kept = await client.save_weights_for_sampler("kept", user_metadata={"a": "b"})
        short = await client.save_weights_for_sampler("short", ttl_seconds=HOUR_S)
        await client.save_weights_and_get_sampling_client()
        listed = (await rest.list_checkpoints(client.model_id)).checkpoints
        assert [(c.tinker_path, c.checkpoint_type, c.user_metadata) for c in listed] == [
            (kept.path, "sampler", {"a": "b"}),
            (short.path, "sampler", None),
        ]
        assert kept.path == f"tinker://{client.model_id}/sampler_weights/kept"
        run = await rest.get_training_run(client.model_id)
        assert run.last_checkpoint is None
        assert run.last_sampler_checkpoint is not None
        sampler, other = await of_path(service, short.path), await of_path(service, kept.path)
        sampler_id = local.samplers()[-2]
        assert (await rest.get_sampler(sampler_id)).model_path == short.path
        wall.ahead_s = HOUR_S + 1
        with pytest.raises(tinker.NotFoundError):
            await sampler.sample(PROMPT, 1, params())
        await rest.delete_checkpoint_from_tinker_path(kept.path)
        with pytest.raises(tinker.NotFoundError):
            await other.sample(PROMPT, 1, params())
        with pytest.raises(tinker.NotFoundError):
            await of_path(service, kept.path)


async def test_faults_strike_sampling_and_samplers_expire() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        sampler = await of_base(service)
        local.inject(FaultRule("fail", request="asample"))
        with pytest.raises(tinker.RequestFailedError, match="injected"):
            await sampler.sample(PROMPT, 1, params())
        local.inject(FaultRule("status", request="asample", status=404))
        with pytest.raises(tinker.NotFoundError):
            await sampler.sample(PROMPT, 1, params())
        local.inject(FaultRule("slow", request="asample", delay_s=0.02))
        await sampler.sample(PROMPT, 1, params())
        local.inject(FaultRule("hang", request="asample"))
        hung = sampler.sample(PROMPT, 1, params())
        with anyio.move_on_after(0.1) as scope:
            await hung
        assert scope.cancelled_caught
        await sampler.sample(PROMPT, 1, params())
        assert [fault.request for fault in local.fired] == ["asample"] * 4
        local.expire_sampler(local.samplers()[0])
        with pytest.raises(tinker.NotFoundError):
            await sampler.sample(PROMPT, 1, params())


async def test_the_tokenizer_of_the_kit_needs_no_network() -> None:
    async with LocalTinker() as local:
        text = "the weather today is: fine.\n"
        tokens = local.tokenizer.encode(text, add_special_tokens=True)
        assert tokens[-1] == local.tokenizer.eos_token_id
        assert max(tokens) < local.tokenizer.vocab_size
        assert local.tokenizer.decode(tokens) == text


async def test_a_sampler_can_be_polled_as_a_whole() -> None:
    """As the SDK does where the service tells it to; failures and faults come through as well."""
    async with (
        LocalTinker(flags={"sample_use_retrieve_futures": True}) as local,
        a_service(local) as service,
    ):
        sampler = await of_base(service)
        both = [await sampler.sample(PROMPT, 2, params(seed=seed)) for seed in (1, 2)]
        assert [len(one.sequences) for one in both] == [2, 2]
        local.inject(FaultRule("fail", request="asample"))
        with pytest.raises(tinker.RequestFailedError, match="injected"):
            await sampler.sample(PROMPT, 1, params())
        local.inject(FaultRule("drop", request="retrieve_futures"))
        assert len((await sampler.sample(PROMPT, 1, params())).sequences) == 1
        assert local.stats.by_route["retrieve_futures"] >= 4
        # One fetch each: nothing is asked for before it is there.
        assert local.stats.by_route["retrieve_future"] == 4
        local.expire_sampler(local.samplers()[0])
        with pytest.raises(tinker.TinkerError):
            await sampler.sample(PROMPT, 1, params())


async def test_copies_of_a_sampling_client_never_share_a_request() -> None:
    async with (
        LocalTinker(
            flags={"sample_join_sampling_session": True, "sample_use_retrieve_futures": True}
        ) as local,
        a_service(local) as service,
    ):
        sampler = await of_base(service)
        handle = sampler.get_sampler_handle()
        copy = await anyio.to_thread.run_sync(
            lambda: SamplingClient.from_sampler_handle(handle, api_key=local.api_key)
        )
        first = await sampler.sample(PROMPT, 1, params(seed=1))
        second = await copy.sample(PROMPT, 1, params(seed=2))
        assert first.sequences[0].tokens != second.sequences[0].tokens
        assert local.stats.by_route["join_sampling_session"] == 1
        await anyio.to_thread.run_sync(copy.holder.close)


async def test_an_abandoned_sample_is_cancelled_where_the_service_asks_for_it() -> None:
    # No poll ends at that moment: asyncio.wait_for of Python 3.11, which the SDK's transport uses,
    # loses a cancellation that comes together with an answer, and the SDK polls on.
    async with (
        LocalTinker(flags={"sample_cancel_enabled": True}, long_poll_s=9.0) as local,
        a_service(local) as service,
    ):
        sampler = await of_base(service)
        local.inject(FaultRule("hang", request="asample"))
        sample = sampler.sample(PROMPT, 1, params())
        await until(lambda: "asample" in local.stats.by_route)
        with pytest.raises(TimeoutError):
            await sample.result_async(timeout=0.3)
        await until(lambda: "cancel_future" in local.stats.by_route)
        await sampler.sample(PROMPT, 1, params())


def test_a_flag_that_the_sdk_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="flags='sample_everything' is not allowed: "):
        LocalTinker(flags={"sample_everything": True})


async def test_the_sdk_finds_the_tokenizer_of_the_kit_in_a_process_that_has_no_network(
    tmp_path: Path,
) -> None:
    variables = LocalTokenizer.write_cache(tmp_path, MODEL)
    script = f"""
import sys
from transformers import AutoTokenizer
found = AutoTokenizer.from_pretrained({MODEL!r})
print(found.encode(sys.argv[1]), found.eos_token_id, found.decode(found.encode(sys.argv[1])))
"""
    text = "The weather: fine, 17 degrees"
    done = await anyio.run_process(
        [sys.executable, "-c", script, text], env={**os.environ, **variables}
    )
    own = LocalTokenizer()
    expected = f"{own.encode(text)} {own.eos_token_id} {text.lower()}"
    assert done.stdout.decode().strip() == expected


async def test_samplers_expire_in_a_process_of_their_own(tmp_path: Path) -> None:
    async with LocalTinkerProcess(tmp_path) as server:
        service = tinker.ServiceClient(base_url=server.base_url, api_key=server.api_key)
        sampler = await of_base(service)
        assert await sampler.sample(PROMPT, 1, params())
        (sampler_id,) = await server.samplers()
        await server.expire_sampler(sampler_id)
        with pytest.raises(tinker.NotFoundError):
            await sampler.sample(PROMPT, 1, params())
        assert await server.samplers() == []
        with pytest.raises(ValueError, match=f"sampler_id='{sampler_id}' is not allowed"):
            await server.expire_sampler(sampler_id)
        await service.close("success")


async def test_samplers_in_flight_adopt_what_is_published_and_others_keep_their_weights() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        client = await fresh(service)
        first = await client.save_weights_and_get_sampling_client(kind="inflight")
        fixed = await client.save_weights_and_get_sampling_client()
        before = await first.compute_logprobs(PROMPT)
        assert await fixed.compute_logprobs(PROMPT) == before
        await train(client, 0, 3)
        assert await first.compute_logprobs(PROMPT) == before, "nothing is published yet"
        second = await client.save_weights_and_get_sampling_client(kind="inflight")
        after = await second.compute_logprobs(PROMPT)
        assert after != before
        assert await first.compute_logprobs(PROMPT) == after
        assert await fixed.compute_logprobs(PROMPT) == before
        other = await fresh(service, seed=8)
        apart = await other.save_weights_and_get_sampling_client(kind="inflight")
        assert await apart.compute_logprobs(PROMPT) == before, "of another run"
        assert await first.compute_logprobs(PROMPT) == after


async def test_the_targets_of_a_prompt_may_be_sparse() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        sampler = await of_base(service)
        ids = np.array([[1, -1], [2, 9], [-1, -1], [26, 7]], np.int64)
        sparse = types.TensorData(
            data=[1, 2, 9, 26, 7],
            dtype="int64",
            shape=[4, 2],
            sparse_crow_indices=[0, 1, 3, 3, 5],
            sparse_col_indices=[0, 0, 1, 0, 1],
        )
        dense, found = [
            (await sampler.sample(PROMPT, 1, params(), target_prompt_logprobs=given))
            for given in (types.TensorData.from_numpy(ids), sparse)
        ]
        assert dense.target_prompt_logprobs is not None
        assert found.target_prompt_logprobs is not None
        listed = np.array(dense.target_prompt_logprobs.data).reshape(4, 2)[ids >= 0]
        assert found.target_prompt_logprobs.data == listed.tolist()
        assert found.target_prompt_logprobs.sparse_crow_indices == [0, 1, 3, 3, 5]
        assert found.target_prompt_logprobs.sparse_col_indices == [0, 0, 1, 0, 1]


def test_the_documentation_says_of_every_fault_what_it_does_to_sampling() -> None:
    table = (actions.__doc__ or "").partition("What a fault does to sampling")[2]
    assert set(re.findall(r"``(\w+)``", table)) >= set(actions.SPECS)


async def test_a_fault_of_one_sample_leaves_its_sampler_in_order() -> None:
    async with LocalTinker(long_poll_s=0.05) as local, a_service(local) as service:
        sampler = await of_base(service)
        undisturbed = await sampler.sample(PROMPT, 1, params())
        local.inject(FaultRule("poison", request="asample"))
        with pytest.raises(tinker.RequestFailedError, match="injected"):
            await sampler.sample(PROMPT, 1, params())
        local.inject(FaultRule("gone", request="asample"))
        local.inject(FaultRule("pause", request="asample", for_s=0.2))
        for fault in ("gone", "pause"):
            found = await sampler.sample(PROMPT, 1, params())
            assert found.sequences[0].tokens == undisturbed.sequences[0].tokens, fault
        assert [fault.rule.action for fault in local.fired] == ["poison", "gone", "pause"]


async def test_a_failed_session_ends_the_samples_that_hang() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        sampler = await of_base(service)
        local.inject(FaultRule("hang", request="asample"))
        hung = sampler.sample(PROMPT, 1, params())
        await until(lambda: len(local.fired) == 1)
        local.fail_session(local.samplers()[0].partition(":")[0], message="no more")
        with pytest.raises(tinker.RequestFailedError, match="no more"), anyio.fail_after(5):
            await hung
        with pytest.raises(tinker.APIStatusError, match="410"):
            await sampler.sample(PROMPT, 1, params())


async def test_sparse_targets_that_do_not_fit_a_prompt_are_refused() -> None:
    async with LocalTinker() as local, a_service(local) as service:
        sampler = await of_base(service)
        for crow in ([0, 1, 2], [0, 1, 2, 2, 3]):
            wrong = types.TensorData(
                data=[1, 2],
                dtype="int64",
                shape=[4, 2],
                sparse_crow_indices=crow,
                sparse_col_indices=[0, 1],
            )
            with pytest.raises(tinker.BadRequestError, match="target_prompt_logprobs"):
                await sampler.sample(PROMPT, 1, params(), target_prompt_logprobs=wrong)


async def test_requests_without_a_seed_are_repeatable_where_the_server_has_one() -> None:
    """Each of a group of the same prompt is another, and another server gives the same."""
    drawn = []
    for _ in range(2):
        async with LocalTinker(sampling_seed=3) as local:
            service = local.service()
            sampler = await service.create_sampling_client(base_model=MODEL)
            params = types.SamplingParams(max_tokens=8)
            replies = [await sampler.sample(PROMPT, 1, params) for _ in range(3)]
            drawn.append([tuple(reply.sequences[0].tokens) for reply in replies])
            await service.close("success")
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3
