"""A look at a checkpoint's bytes on disk, in one pass, with the standard library alone.

Checks, in this order: the size, the header's rules, values that are not numbers, a tail of zeros,
and the checksum against the one recorded when the file was first seen. Reads the file once, in
chunks; about as fast as SHA-256 is, which takes most of the time.
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
"""Bytes read at a time; a multiple of every element's size. Fits a cache, which is what counts."""

ZERO_TAIL = 4096
"""A tensor that ends in at least this many zero bytes, and holds others, was not written whole:
a page of a file that was being extended when the machine went down reads as zeros. A tensor of
zeros alone is ordinary, as half of every fresh LoRA is."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is recorded of a file at first sight, to be compared with ever after.

    Attributes:
        size_bytes: Its size.
        sha256: Its checksum, in hex.
    """

    size_bytes: int
    sha256: str


def inspect_file(
    path: Path, recorded: FileFacts | None = None, *, size_bytes: int | None = None
) -> FileFacts:
    """Read one safetensors file through, and check everything that can be checked.

    Blocks while it reads: call it in a worker thread.

    Args:
        path: The file.
        recorded: What was recorded when it was first seen.
        size_bytes: Its size as the service says, if nothing was recorded.

    Returns:
        What to record of it, if it is the first time.

    Raises:
        DamagedFile: Something is wrong with it; the message says what.
        OSError: It is there and cannot be read: that says nothing about the checkpoint.
    """
    try:
        with path.open("rb") as file:
            return _inspect(file, path.stat().st_size, recorded, size_bytes)
    except FileNotFoundError as error:
        raise DamagedFile("the file is gone") from error


def _inspect(
    file: BinaryIO, size: int, recorded: FileFacts | None, size_bytes: int | None
) -> FileFacts:
    expected = recorded.size_bytes if recorded else size_bytes
    if expected is not None and size != expected:
        raise DamagedFile(f"it has {size} bytes, and {expected} are on record")
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
            f"it ends in zeros from within tensor {unfinished.name!r} on, as a file does that was "
            "not written to its end"
        )
    facts = FileFacts(size, digest.hexdigest())
    if recorded is not None and facts.sha256 != recorded.sha256:
        raise DamagedFile(
            f"its SHA-256 is {facts.sha256}, and {recorded.sha256} was recorded at first sight"
        )
    return facts


def _chunks(file: BinaryIO, count: int) -> Iterator[bytes]:
    while count > 0:
        chunk = file.read(min(CHUNK, count))
        if not chunk:
            raise DamagedFile(f"it became shorter while it was read: {count} bytes are missing")
        count -= len(chunk)
        yield chunk


# Of each float format: how far apart elements lie, and for the last byte of one (little endian, so
# sign and exponent come last) and the byte before it, which values a NaN or an infinity may have.
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

    Looks at the bytes of the exponent only, with operations that run over a whole chunk in C: no
    array library, and still faster than the checksum.
    """
    if dtype not in _FLOATS:
        return False
    stride, last, before = _FLOATS[dtype]
    top = chunk[stride - 1 :: stride]
    # An exponent this large is rare in honest weights, so this usually decides.
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
