"""Protobuf requests and replies, as defined in ``tinker/proto`` of the SDK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs
from tinker.proto import tinker_public_pb2 as pb

from tinker_recovery.testing._losses import Loss, loss_of
from tinker_recovery.testing._model import Datum, Floats, Ints

MEDIA_TYPE = "application/x-protobuf"


def read_request(content: bytes, encoding: str | None) -> Any:
    """A ForwardBackwardRequest, from an HTTP body and its Content-Encoding.

    Raises:
        ValueError: It cannot be parsed as one.
    """
    request = pb.ForwardBackwardRequest()
    try:
        if encoding == "zstd":
            content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
        request.ParseFromString(content)
    except (DecodeError, zstandard.ZstdError) as error:
        raise ValueError(f"not a ForwardBackwardRequest: {error}") from error
    return request


def read_batch(
    request: Any, *, weights_required: bool = False, vocabulary: int | None = None
) -> list[Datum]:
    """The data of a ForwardBackwardRequest.

    Raises:
        ValueError: A datum has no targets, targets of another length than its tokens, no weights
            though they are required, no logprobs or advantages though its loss needs them, or a
            token that is not in the vocabulary.
    """
    batch = []
    for number, datum in enumerate(request.data):
        chunks = [np.frombuffer(c.encoded_text.tokens, np.int32) for c in datum.model_input]
        tokens = np.concatenate(chunks).astype(np.int64) if chunks else np.zeros(0, np.int64)
        inputs = datum.loss_fn_inputs
        if "target_tokens" not in inputs:
            raise ValueError(f"datum {number} has no target_tokens")
        required = weights_required and request.loss_fn == "cross_entropy"
        if required and "weights" not in inputs:
            raise ValueError(f"datum {number} has no weights: cross_entropy needs them")
        targets = np.frombuffer(inputs["target_tokens"].dense, np.int64)
        if vocabulary is not None and max(*tokens, *targets, 0, 0) >= vocabulary:
            raise ValueError(f"datum {number} has a token outside the vocabulary of {vocabulary}")
        weights = (
            np.frombuffer(inputs["weights"].dense, np.float32)
            if "weights" in inputs
            else np.ones(len(tokens), np.float32)
        )
        loss = None if request.loss_fn == "cross_entropy" else _loss(request, number, targets)
        if not len(tokens) == len(targets) == len(weights):
            raise ValueError(
                f"datum {number} has {len(tokens)} tokens, {len(targets)} targets and "
                f"{len(weights)} weights: the numbers have to be equal"
            )
        batch.append(Datum(tokens, targets, weights, loss))
    return batch


_OF_A_LOSS = frozenset({"target_tokens", "weights", "logprobs", "advantages"})


def _loss(request: Any, number: int, targets: Ints) -> Loss:
    inputs = request.data[number].loss_fn_inputs
    unknown = sorted(set(inputs) - _OF_A_LOSS)
    if unknown:
        raise ValueError(
            f"datum {number} has {', '.join(unknown)}, which {request.loss_fn} does not take here"
        )
    found = []
    for name in ("logprobs", "advantages"):
        if name not in inputs:
            raise ValueError(f"datum {number} has no {name}: {request.loss_fn} needs them")
        found.append(np.frombuffer(inputs[name].dense, np.float32))
        if len(found[-1]) != len(targets):
            raise ValueError(
                f"datum {number} has {len(targets)} targets and {len(found[-1])} {name}: "
                "the numbers have to be equal"
            )
    return loss_of(request.loss_fn, dict(request.loss_fn_config), *found)


def write_output(loss: float, logprobs: Sequence[Floats]) -> bytes:
    """A ForwardBackwardOutput: the loss, and each datum's logprobs."""
    output = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    output.metrics["loss:sum"] = loss
    record = output.loss_fn_outputs.add()
    record.num_datums = len(logprobs)
    field = record.fields["logprobs"]
    field.dtype = pb.DTYPE_FLOAT32
    field.data = b"".join(one.tobytes() for one in logprobs)
    ends = np.cumsum([0, *(one.nbytes for one in logprobs)], dtype=np.int64)
    field.offsets = ends.tobytes()
    return bytes(output.SerializeToString())
