"""Damage to a stored checkpoint's file, as pure functions of its bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any, Literal, get_args

Damage = Literal[
    "truncated",
    "trailing_byte",
    "header_flip",
    "hole",
    "zero_tail",
    "bit_flip",
    "nan",
    "deleted",
    "no_metadata",
]
"""Kinds of damage:

- ``truncated``: the last third of the file is missing.
- ``trailing_byte``: one byte follows the last tensor.
- ``header_flip``: a bit of the header is flipped, so that it is no longer JSON.
- ``hole``: unused bytes lie between two tensors.
- ``zero_tail``: the file is zeros from the middle of its last weights on, as after a crash of the
  machine while the file was being extended.
- ``bit_flip``: one bit of the weights is flipped, which leaves a plausible number.
- ``nan``: one of the weights is NaN.
- ``deleted``: the file is gone, and the checkpoint is still listed.
- ``no_metadata``: the user_metadata is gone.
"""

_HOLE = 64
_WEIGHTS = ("lora_a", "lora_b")
"""The trained weights, in the order of the file."""


def damaged(content: bytes, how: Damage) -> bytes:
    """A safetensors file's bytes after damage; raises ValueError for an unknown kind."""
    if how not in _TO_BYTES:
        raise ValueError(f"how={how!r} is not allowed: {', '.join(get_args(Damage))}")
    return _TO_BYTES[how](content)


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), start


def _place(content: bytes, which: int) -> tuple[int, int]:
    """Where the first (0) or last (-1) of the trained weights is, also in an export."""
    header, start = _header(content)
    by_offset = sorted(
        (facts["data_offsets"], name) for name, facts in header.items() if name != "__metadata__"
    )
    trained = [
        place
        for place, name in by_offset
        if name in _WEIGHTS or name.endswith((".lora_A.weight", ".lora_B.weight"))
    ]
    begin, end = trained[which]
    return start + begin, start + end


def _with_a_hole(content: bytes) -> bytes:
    header, start = _header(content)
    end_of_first = min(facts["data_offsets"][1] for facts in header.values())
    for facts in header.values():
        begin, end = facts["data_offsets"]
        if begin >= end_of_first:
            facts["data_offsets"] = [begin + _HOLE, end + _HOLE]
    new_header = json.dumps(header).encode()
    tensors = content[start:]
    holed = tensors[:end_of_first] + bytes(_HOLE) + tensors[end_of_first:]
    return struct.pack("<Q", len(new_header)) + new_header + holed


def _with_a_zero_tail(content: bytes) -> bytes:
    begin, end = _place(content, -1)
    middle = (begin + end) // 2
    return content[:middle] + bytes(len(content) - middle)


def _with_a_nan(content: bytes) -> bytes:
    at = _place(content, -1)[0]
    return content[:at] + struct.pack("<f", float("nan")) + content[at + 4 :]


_TO_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: -len(content) // 3],
    "trailing_byte": lambda content: content + b"\0",
    "header_flip": lambda content: _flipped(content, 8),
    "hole": _with_a_hole,
    "zero_tail": _with_a_zero_tail,
    # The middle of a float32: it changes by about a hundredth of its value.
    "bit_flip": lambda content: _flipped(content, _place(content, 0)[0] + 2),
    "nan": _with_a_nan,
}
