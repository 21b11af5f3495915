"""Protobuf requests and replies, as defined in ``tinker/proto`` of the SDK."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs
from tinker.proto import tinker_public_pb2 as pb

from tinker_recovery.testing._losses import Loss, inputs_of, loss_of
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
        ValueError: A datum has no targets, targets of another length than its tokens, or of another
            shape than its weights, no weights though they are required, no logprobs or advantages
            though its loss needs them, or a token that is not in the vocabulary.
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
        targets = _array(inputs["target_tokens"], np.int64)
        if vocabulary is not None and max(*tokens, *targets.flat, 0, 0) >= vocabulary:
            raise ValueError(f"datum {number} has a token outside the vocabulary of {vocabulary}")
        weights = (
            _array(inputs["weights"], np.float32)
            if "weights" in inputs
            else np.ones(targets.shape, np.float32)
        )
        loss = None if request.loss_fn == "cross_entropy" else _loss(request, number, targets)
        if not len(tokens) == len(targets) == len(weights):
            raise ValueError(
                f"datum {number} has {len(tokens)} tokens, {len(targets)} targets and "
                f"{len(weights)} weights: the numbers have to be equal"
            )
        if targets.shape != weights.shape or targets.ndim > _MOST_AXES:
            raise ValueError(
                f"datum {number} has targets of shape {[*targets.shape]} and weights of shape "
                f"{[*weights.shape]}: they have to be equal, with one axis or two"
            )
        batch.append(Datum(tokens, targets, weights, loss))
    return batch


def _array(tensor: Any, dtype: type[np.generic]) -> Any:
    """A tensor's values; of a sparse one, 0 where it has none."""
    shape = tuple(tensor.shape)
    if not tensor.HasField("sparse_csr"):
        found = np.frombuffer(tensor.dense, dtype)
        return found.reshape(shape) if shape else found
    csr = tensor.sparse_csr
    crow = np.frombuffer(csr.crow_indices, np.int64)
    rows = np.repeat(np.arange(shape[0]), crow[1:] - crow[:-1])
    whole = np.zeros(shape, dtype)
    try:
        whole[rows, np.frombuffer(csr.col_indices, np.int64)] = np.frombuffer(csr.values, dtype)
    except IndexError as error:
        raise ValueError(f"a sparse tensor does not fit its shape {[*shape]}: {error}") from error
    return whole


_MOST_AXES = 2


def _loss(request: Any, number: int, targets: Ints) -> Loss:
    inputs = request.data[number].loss_fn_inputs
    needed = inputs_of(request.loss_fn)
    unknown = sorted(set(inputs) - {"target_tokens", "weights", *needed})
    if unknown:
        raise ValueError(
            f"datum {number} has {', '.join(unknown)}, which {request.loss_fn} does not take here"
        )
    found = []
    for name in needed:
        if name not in inputs:
            raise ValueError(f"datum {number} has no {name}: {request.loss_fn} needs them")
        found.append(_array(inputs[name], np.float32))
        if found[-1].shape != targets.shape:
            raise ValueError(
                f"datum {number} has {targets.size} targets and {found[-1].size} {name}: "
                "the numbers have to be equal"
            )
    try:
        return loss_of(request.loss_fn, dict(request.loss_fn_config), *found)
    except ValueError as error:
        raise ValueError(f"datum {number}: {error}") from error


def write_output(loss: float, logprobs: Sequence[Floats]) -> bytes:
    """A ForwardBackwardOutput: the loss, and each datum's logprobs."""
    output = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    output.metrics["loss:sum"] = loss
    # Those of one record have the same shape but for its first axis.
    for trailing, group in itertools.groupby(logprobs, lambda one: one.shape[1:]):
        data = list(group)
        record = output.loss_fn_outputs.add()
        record.num_datums = len(data)
        field = record.fields["logprobs"]
        field.dtype = pb.DTYPE_FLOAT32
        field.data = b"".join(one.tobytes() for one in data)
        field.offsets = np.cumsum([0, *(one.nbytes for one in data)], dtype=np.int64).tobytes()
        field.trailing_shape.extend(trailing)
    return bytes(output.SerializeToString())
