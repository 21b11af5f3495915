"""Checks of a checkpoint's file on disk, in one pass, with the standard library alone.

Checks the rules of the header, values that are NaN or infinite, and a tail of zeros, and takes the
checksum, all while reading the file once, in chunks; SHA-256 takes most of the time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tinker_recovery.checkpoints.safetensors_header import (
    LENGTH,
    DamagedFile,
    Tensor,
    header_length,
    read_header,
)

CHUNK = 1 << 20
"""Bytes read at a time: a multiple of every element's size, small enough for a CPU cache."""

ZERO_TAIL = 4096
"""A tensor that ends in at least this many zero bytes, and holds others, was not written whole:
a page of a file that was being extended when the machine went down reads as zeros. A tensor of
zeros alone is ordinary, as half of every fresh LoRA is."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Identifies a file's content.

    Attributes:
        size_bytes: Its size.
        sha256: Its checksum, in hex.
    """

    size_bytes: int
    sha256: str


def inspect_file(path: Path) -> FileFacts:
    """Check one safetensors file.

    Blocks while it reads: call it in a worker thread.

    Raises:
        DamagedFile: Something is wrong with it; the message says what.
        OSError: It is there and cannot be read: that says nothing about the checkpoint.
    """
    try:
        with path.open("rb") as file:
            return _inspect(file, path.stat().st_size)
    except FileNotFoundError as error:
        raise DamagedFile("the file is gone") from error


def _inspect(file: BinaryIO, size: int) -> FileFacts:
    digest = hashlib.sha256()
    first = file.read(LENGTH.size)
    length = header_length(first, size)
    header = file.read(length)
    tensors = read_header(header, size)
    digest.update(first)
    digest.update(header)
    unfinished: Tensor | None = None
    for tensor in tensors:
        zeros, tail = True, 0
        for chunk in _chunks(file, tensor.end - tensor.begin):
            digest.update(chunk)
            if holds_non_finite(chunk, tensor.dtype):
                raise DamagedFile(f"tensor {tensor.name!r} holds NaN or infinite values")
            nonzero = len(chunk.rstrip(b"\0"))
            if nonzero:
                zeros, tail = False, len(chunk) - nonzero
            else:
                tail += len(chunk)
        # Whole tensors of zeros behind an unfinished one belong to the same tail.
        if not zeros:
            unfinished = tensor if tail >= ZERO_TAIL else None
    if unfinished is not None:
        raise DamagedFile(
            f"it ends in zeros from within tensor {unfinished.name!r} on, as if it had not been "
            "written to its end"
        )
    return FileFacts(size, digest.hexdigest())


def _chunks(file: BinaryIO, count: int) -> Iterator[bytes]:
    while count > 0:
        chunk = file.read(min(CHUNK, count))
        if not chunk:
            raise DamagedFile(f"it became shorter while it was read: {count} bytes are missing")
        count -= len(chunk)
        yield chunk


# For each float format: bytes per element, and the values that a NaN or an infinity may have in the
# last byte (little endian: sign and exponent come last) and in the byte before it.
_TOP7 = bytes([0x7F, 0xFF])
_FLOATS: dict[str, tuple[int, bytes, bytes | None]] = {
    "F64": (8, _TOP7, bytes(range(0xF0, 0x100))),
    "F32": (4, _TOP7, bytes(range(0x80, 0x100))),
    "C64": (4, _TOP7, bytes(range(0x80, 0x100))),
    "BF16": (2, _TOP7, bytes(range(0x80, 0x100))),
    "F16": (2, bytes([*range(0x7C, 0x80), *range(0xFC, 0x100)]), None),
    "F8_E5M2": (1, bytes([*range(0x7C, 0x80), *range(0xFC, 0x100)]), None),
    "F8_E4M3": (1, _TOP7, None),
    "F8_E4M3FNUZ": (1, b"\x80", None),
    "F8_E5M2FNUZ": (1, b"\x80", None),
    "F8_E8M0": (1, b"\xff", None),
}


def holds_non_finite(chunk: bytes, dtype: str) -> bool:
    """Whether a chunk of whole elements holds a NaN or an infinity; False for other dtypes.

    Reads the exponents' bytes only, with operations that process a whole chunk in C: faster than
    the checksum, without an array library.
    """
    if dtype not in _FLOATS:
        return False
    stride, last, before = _FLOATS[dtype]
    top = chunk[stride - 1 :: stride]
    # An exponent this large is rare in sound weights, so this usually decides.
    if all(byte not in top for byte in last):
        return False
    if before is None:
        return True
    marks = _marks(top, last)
    others = _marks(chunk[stride - 2 :: stride], before)
    return int.from_bytes(marks, "little") & int.from_bytes(others, "little") != 0


def _marks(data: bytes, values: bytes) -> bytes:
    """1 where a byte is one of ``values``, else 0."""
    return data.translate(bytes(byte in values for byte in range(256)))
