"""The rules a safetensors file's header obeys, checked without reading the tensors.

The file is 8 bytes of header length (little endian), that many bytes of JSON, then the tensors'
bytes, end to end: no hole, no overlap, nothing after the last.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

from tinker_recovery.errors import CheckpointError

LENGTH = struct.Struct("<Q")

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""

BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element of each dtype."""


class DamagedFile(CheckpointError, ValueError):
    """A file breaks a rule of its format; the message says which."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's place in the file.

    Attributes:
        name: Its name.
        dtype: One of :data:`BITS`.
        begin: Its first byte, counted from the file's beginning.
        end: The byte after its last.
    """

    name: str
    dtype: str
    begin: int
    end: int


def header_length(first: bytes, size: int) -> int:
    """Bytes of JSON, by the file's first 8 bytes.

    Args:
        first: Those bytes, or all there are.
        size: The file's size in bytes.

    Raises:
        DamagedFile: It cannot be.
    """
    if len(first) < LENGTH.size:
        raise DamagedFile(f"it has {len(first)} bytes, and a header length alone takes 8")
    (length,) = LENGTH.unpack(first[:8])
    if length > MAX_HEADER or length < 2:  # noqa: PLR2004 - "{}"
        raise DamagedFile(f"its header claims {length} bytes, and 2 to {MAX_HEADER} are possible")
    if LENGTH.size + length > size:
        raise DamagedFile(f"its header claims {length} bytes, and the file has only {size}")
    return int(length)


def read_header(header: bytes, size: int) -> list[Tensor]:
    """The tensors in the order of their bytes.

    Args:
        header: The JSON, as long as :func:`header_length` said.
        size: The file's size in bytes.

    Raises:
        DamagedFile: A rule is broken.
    """
    try:
        said = json.loads(header.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"its header is not JSON: {error}") from error
    if not isinstance(said, dict) or not header.startswith(b"{"):
        raise DamagedFile("its header is not a JSON object")
    notes = said.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise DamagedFile("its __metadata__ is not a map of strings to strings")
    start = LENGTH.size + len(header)
    tensors = [_tensor(name, facts, start) for name, facts in said.items()]
    # Tensors without elements take no bytes, and may share their offset with the one behind them.
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    reached = start
    for tensor in tensors:
        if tensor.begin != reached:
            kind = "a hole" if tensor.begin > reached else "an overlap"
            raise DamagedFile(
                f"{kind} of {abs(tensor.begin - reached)} bytes lies before tensor {tensor.name!r}"
            )
        reached = tensor.end
    if reached > size:
        raise DamagedFile(f"it is cut short: {reached} bytes are described, and it has {size}")
    if reached < size:
        raise DamagedFile(f"{size - reached} bytes follow the last tensor")
    return tensors


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DamagedFile("its header names something twice")
    return found


def _tensor(name: str, facts: object, start: int) -> Tensor:
    match facts:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **rest} if (
            not rest and all(_is_count(number) for number in [begin, end, *shape])
        ):
            pass
        case _:
            raise DamagedFile(
                f"tensor {name!r} is described as {str(facts)[:200]}, and needs a dtype, a shape "
                "and two data_offsets"
            )
    if dtype not in BITS:
        raise DamagedFile(f"tensor {name!r} is of the unknown dtype {dtype!r}")
    bits = math.prod(shape) * BITS[dtype]
    if begin > end or bits != (end - begin) * 8:
        raise DamagedFile(
            f"tensor {name!r}, {dtype} of shape {shape}, takes {bits / 8:g} bytes, and its offsets "
            f"{begin} to {end} hold {end - begin}"
        )
    return Tensor(name, dtype, start + begin, start + end)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
