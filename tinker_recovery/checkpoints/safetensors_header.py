"""The rules of a safetensors file's header, checked without reading the tensors.

The file is 8 bytes of header length (little endian), the header as that many bytes of JSON, then
the tensors' bytes without holes or overlaps, and nothing after the last.
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
    """A file is not what it should be; the message says why."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is in the file.

    Attributes:
        name: Its name.
        dtype: One of :data:`BITS`.
        begin: Offset of its first byte in the file.
        end: Offset of the byte after its last.
    """

    name: str
    dtype: str
    begin: int
    end: int


def header_length(first: bytes, size: int) -> int:
    """The header's length in bytes, from the first 8 of a file of ``size`` bytes.

    Raises:
        DamagedFile: The file has no such header.
    """
    if len(first) < LENGTH.size:
        raise DamagedFile(f"it has {len(first)} bytes, and the header length alone takes 8")
    (length,) = LENGTH.unpack(first[:8])
    if length > MAX_HEADER or length < 2:  # noqa: PLR2004 - "{}"
        raise DamagedFile(f"its header claims {length} bytes, and 2 to {MAX_HEADER} are allowed")
    if LENGTH.size + length > size:
        raise DamagedFile(f"its header claims {length} bytes, and the file has only {size}")
    return int(length)


def read_header(header: bytes, size: int) -> list[Tensor]:
    """The tensors of a file of ``size`` bytes, in the order of their offsets.

    Raises:
        DamagedFile: The header breaks a rule.
    """
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"its header is not JSON: {error}") from error
    if not isinstance(entries, dict) or not header.startswith(b"{"):
        raise DamagedFile("its header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise DamagedFile("its __metadata__ is not a map of strings to strings")
    start = LENGTH.size + len(header)
    tensors = [_tensor(name, facts, start) for name, facts in entries.items()]
    # A tensor without elements takes no bytes, and may share its offset with the next one.
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    reached = start
    for tensor in tensors:
        if tensor.begin != reached:
            kind = "a hole" if tensor.begin > reached else "an overlap"
            raise DamagedFile(
                f"{kind} of {abs(tensor.begin - reached)} bytes is before tensor {tensor.name!r}"
            )
        reached = tensor.end
    if reached > size:
        raise DamagedFile(f"it is cut short: its header describes {reached} bytes, it has {size}")
    if reached < size:
        raise DamagedFile(f"{size - reached} bytes follow the last tensor")
    return tensors


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DamagedFile("its header has a key twice")
    return found


def _tensor(name: str, facts: object, start: int) -> Tensor:
    match facts:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **rest} if (
            not rest and all(_is_count(number) for number in [begin, end, *shape])
        ):
            pass
        case _:
            raise DamagedFile(
                f"tensor {name!r} needs a dtype, a shape and two data_offsets, and is described as "
                f"{str(facts)[:200]}"
            )
    if dtype not in BITS:
        raise DamagedFile(f"tensor {name!r} has the unknown dtype {dtype!r}")
    bits = math.prod(shape) * BITS[dtype]
    if begin > end or bits != (end - begin) * 8:
        raise DamagedFile(
            f"tensor {name!r}, {dtype} of shape {shape}, takes {bits / 8:g} bytes, and its offsets "
            f"{begin} to {end} hold {end - begin}"
        )
    return Tensor(name, dtype, start + begin, start + end)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
