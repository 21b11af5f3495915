"""The routes of sampling: weights for samplers, samplers, and samples."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tinker.proto import tinker_public_pb2 as pb

from tinker_recovery.testing._model import VOCABULARY, Ints
from tinker_recovery.testing._options import ServerOptions
from tinker_recovery.testing._rest_routes import check_ttl, kept_metadata
from tinker_recovery.testing._runs import ServiceError, ServiceRun, session_of
from tinker_recovery.testing._samplers import Sampler
from tinker_recovery.testing._sampling import (
    MOST_TOKENS,
    Drawing,
    Weights,
    logprobs_of,
    prompt_logprobs,
    rng_of,
    topk,
)
from tinker_recovery.testing._service_state import ServiceState
from tinker_recovery.testing._tokenizer import LocalTokenizer

_DRAWN = ("temperature", "top_k", "top_p")

_TOKEN_BYTES = 4

_ALTERNATIVES = 1
"""Sets the draws of ``prompt_alt_tokens_k`` apart from the samples of the same seed."""


class SamplerRoutes:
    """Handlers that save weights for samplers, make samplers, and sample."""

    def __init__(self, state: ServiceState, options: ServerOptions) -> None:
        self._state = state
        self._options = options

    async def save_weights_for_sampler(self, request: Request) -> Response:
        """Queue a save for samplers: a named checkpoint, or, without a name, a sampler."""
        body = await request.json()
        state, run, name = self._state, self._state.run(body["model_id"]), body.get("path")
        seq_id, ttl_s = int(body["seq_id"]), body.get("ttl_seconds")
        check_ttl(ttl_s)
        metadata = kept_metadata(self._options.metadata, run, seq_id, body.get("user_metadata"))
        done = {"type": "save_weights_for_sampler"}

        def snapshot(run: ServiceRun) -> dict[str, Any]:
            sampler_id = f"{run.session}:sample:{body['sampling_session_seq_id']}"
            inflight = body.get("kind") == "inflight"
            state.samplers.snapshot(run.run_id, sampler_id, run.loaded(), inflight=inflight)
            return {"sampling_session_id": sampler_id, **done}

        def save(run: ServiceRun) -> dict[str, Any]:
            path = state.checkpoints.save(
                run.run_id,
                str(name),
                run.loaded(),
                ttl_s=ttl_s,
                user_metadata=metadata,
                kind="sampler_weights",
            )
            state.ledger.count("checkpoint", run.session, run.facts["base_model"], 1)
            return {"path": path, **done}

        if name is None:
            request_id = state.submit(run.run_id, seq_id, "save_weights_for_sampler", snapshot)
        else:
            request_id = state.submit_save(run, seq_id, name, save, kind="sampler_weights")
        return JSONResponse({"request_id": request_id})

    async def create_sampling_session(self, request: Request) -> Response:
        """Make a sampler of a checkpoint or of a base model."""
        body = await request.json()
        session = body["session_id"]
        self._state.sessions.check_active(session)
        sampler_id = self._state.samplers.create(
            session,
            int(body["sampling_session_seq_id"]),
            model_path=body.get("model_path"),
            base_model=body.get("base_model"),
        )
        return JSONResponse({"sampling_session_id": sampler_id, "type": "create_sampling_session"})

    async def join_sampling_session(self, request: Request) -> Response:
        """Count one more client of a sampler."""
        sampler = self._state.samplers.get((await request.json())["sampling_session_id"])
        sampler.clients += 1
        return JSONResponse({"client_counter": sampler.clients, "type": "join_sampling_session"})

    async def sampler(self, request: Request) -> Response:
        """One sampler."""
        sampler = self._state.samplers.get(request.path_params["sampler"])
        found = {"sampler_id": sampler.sampler_id, "base_model": sampler.base_model}
        path = sampler.model_path
        return JSONResponse(found if path is None else {**found, "model_path": path})

    async def asample(self, request: Request) -> Response:
        """Queue a sampling request."""
        body = await request.json()
        sampler = self._state.samplers.get(body["sampling_session_id"])
        self._state.sessions.check_active(session_of(sampler.sampler_id))
        prompt, drawing = _read_prompt(body["prompt"]), _read_drawing(body["sampling_params"])
        _check(body, prompt)
        seed = body["sampling_params"].get("seed")
        seed = self._seed(sampler, prompt) if seed is None else int(seed)
        seq_id = int(body["seq_id"])

        def execute() -> bytes:
            reply = write_samples(sampler.weights, prompt, drawing, seed, body)
            sampled = sum(len(one.tokens) // _TOKEN_BYTES for one in reply.sequences)
            who = session_of(sampler.sampler_id), sampler.base_model
            self._state.ledger.count("sampling_prefill", *who, len(prompt))
            self._state.ledger.count("sampling_sample", *who, sampled)
            return bytes(reply.SerializeToString())

        request_id = self._state.sample(sampler, seq_id, execute)
        count = int(body.get("num_samples", 1))
        ids = [f"{sampler.sampler_id}:{seq_id}:{index}" for index in range(count)]
        return JSONResponse({"request_id": request_id, "sample_sequence_ids": ids})

    async def retrieve_futures(self, request: Request) -> Response:
        """Which requests of a sampler's client have finished since the cursor."""
        body = await request.json()
        target, cursor = body["target"], int(body.get("prev_cursor", 0))
        sampler = self._state.samplers.get(target["sampling_session_id"])
        session = session_of(sampler.sampler_id)
        self._state.sessions.check_not_ended(session)
        finished = sampler.finished(int(target.get("cloned_sampler_id", 0)))
        limit_s = 0.0 if body.get("timeout") == 0 else self._options.long_poll_s
        await finished.wait_beyond(cursor, limit_s)
        self._state.sessions.check_not_ended(session)
        found = finished.completions[cursor:]
        return JSONResponse({"completions": found, "cursor": cursor + len(found)})

    def _seed(self, sampler: Sampler, prompt: Ints) -> int:
        """The seed of a request that has none."""
        seed = self._options.sampling_seed
        if seed is None:
            return secrets.randbits(62)
        asked: bytes = prompt.tobytes()
        sampler.turns[asked] += 1
        # Of the prompt, too: with one seed for all, a model that has learned little would answer
        # every prompt alike, and a group of rollouts would have one reward and nothing to learn.
        asked += f"{seed}:{sampler.turns[asked]}".encode()
        return int.from_bytes(hashlib.sha256(asked).digest()[:7])


def _read_prompt(prompt: dict[str, Any]) -> Ints:
    chunks = prompt["chunks"]
    if any(chunk.get("type") != "encoded_text" for chunk in chunks):
        raise ServiceError(400, "prompt is not allowed: only text is offered, no images")
    tokens = np.array([token for chunk in chunks for token in chunk["tokens"]], np.int64)
    if not len(tokens):
        raise ServiceError(400, "prompt=[] is not allowed: at least one token")
    return tokens % VOCABULARY


def _read_drawing(params: dict[str, Any]) -> Drawing:
    given: dict[str, Any] = {key: params[key] for key in _DRAWN if key in params}
    stop = params.get("stop")
    if stop is not None:
        given["stops"] = _read_stops([stop] if isinstance(stop, str) else stop)
    limit = params.get("max_tokens")
    try:
        return Drawing(max_tokens=MOST_TOKENS if limit is None else int(limit), **given)
    except ValueError as error:
        raise ServiceError(400, str(error)) from error


def _read_stops(stops: list[str | int]) -> tuple[tuple[int, ...], ...]:
    tokenizer = LocalTokenizer()
    found = (
        tuple(tokenizer.encode(stop)) if isinstance(stop, str) else (stop % VOCABULARY,)
        for stop in stops
    )
    return tuple(stop for stop in found if stop)


def _check(body: dict[str, Any], prompt: Ints) -> None:
    last_n, count = body.get("prompt_logprobs_last_n"), body.get("num_samples", 1)
    if last_n is not None and not 1 <= last_n < len(prompt):
        most = len(prompt) - 1
        raise ServiceError(400, f"prompt_logprobs_last_n={last_n!r} is not allowed: 1 to {most}")
    if count < 1:
        raise ServiceError(400, f"num_samples={count!r} is not allowed: 1 or more")
    target, rows = body.get("target_prompt_logprobs"), len(prompt) - 1
    if target is None:
        return
    crow = target.get("sparse_crow_indices")
    fits = crow is None or (len(crow) == rows + 1 and crow[-1] == len(target["data"]))
    if not fits or (target.get("shape") or [None])[0] != rows:
        raise ServiceError(400, f"target_prompt_logprobs is not allowed: {rows} rows are needed")


def write_samples(
    weights: Weights, prompt: Ints, drawing: Drawing, seed: int, body: dict[str, Any]
) -> Any:
    """A SampleResponse: all that a sampling request asks for."""
    table, reply = weights.table, pb.SampleResponse()
    for index in range(int(body.get("num_samples", 1))):
        tokens, before, stopped = drawing.sample(weights, prompt, rng_of(seed, index))
        sequence = reply.sequences.add()
        sequence.stop_reason = pb.STOP_REASON_STOP if stopped else pb.STOP_REASON_LENGTH
        sequence.tokens = np.array(tokens, np.int32).tobytes()
        sequence.logprobs = table[before, tokens].tobytes()
        if k := body.get("topk_sample_logprobs", 0):
            sequence.topk_sampled_logprobs.CopyFrom(topk(table, before, k))
    last_n = body.get("prompt_logprobs_last_n")
    skipped = 1 if last_n is None else len(prompt) - last_n
    if body.get("prompt_logprobs"):
        reply.prompt_logprobs = prompt_logprobs(table, prompt, last_n).tobytes()
    if k := body.get("topk_prompt_logprobs", 0):
        found = topk(table, prompt[skipped - 1 : -1], k, skipped=skipped)
        reply.topk_prompt_logprobs.CopyFrom(found)
    if (target := body.get("target_prompt_logprobs")) is not None:
        _write_target(reply.target_prompt_logprobs, weights, prompt, target)
    if k := body.get("prompt_alt_tokens_k", 0):
        rng = rng_of(seed, 0, _ALTERNATIVES)
        one = Drawing(temperature=drawing.temperature)
        before_each = np.repeat(prompt[:-1], k)
        drawn = np.array([one.next(table[token], rng) for token in before_each], np.int64)
        shape = (len(prompt) - 1, k)
        alternatives = reply.prompt_alt_tokens
        _write_dense(alternatives.tokens, drawn.astype(np.int32), pb.DTYPE_INT32, shape)
        found_logprobs = logprobs_of(table, before_each, drawn)
        _write_dense(alternatives.logprobs, found_logprobs, pb.DTYPE_FLOAT32, shape)
    return reply


def _write_target(tensor: Any, weights: Weights, prompt: Ints, target: dict[str, Any]) -> None:
    ids, shape = np.array(target["data"], np.int64).ravel(), target["shape"]
    crow = target.get("sparse_crow_indices")
    counts = np.full(shape[0], shape[1]) if crow is None else np.diff(crow)
    values = logprobs_of(weights.table, np.repeat(prompt[:-1], counts), ids)
    if crow is None:
        _write_dense(tensor, values, pb.DTYPE_FLOAT32, shape)
        return
    tensor.dtype = pb.DTYPE_FLOAT32
    tensor.shape.extend(shape)
    tensor.sparse_csr.values = values.tobytes()
    tensor.sparse_csr.crow_indices = np.array(crow, np.int64).tobytes()
    tensor.sparse_csr.col_indices = np.array(target["sparse_col_indices"], np.int64).tobytes()


def _write_dense(tensor: Any, values: Any, dtype: int, shape: Any) -> None:
    tensor.dtype = dtype
    tensor.shape.extend(shape)
    tensor.dense = values.tobytes()
