"""Safetensors files by their header: read, and written anew with other names, in small pieces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from tinker_recovery.checkpoints.safetensors_header import (
    LENGTH,
    DamagedFile,
    header_length,
    read_header,
)
from tinker_recovery.errors import ExportRefused

CHUNK = 1 << 20
"""Bytes read at a time, so that memory does not grow with a file."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is in a file.

    Attributes:
        dtype: As safetensors names it: ``F32``.
        shape: Its sizes.
        begin: Offset of its first byte in the file.
        size: Its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file whose header was read.

    Attributes:
        path: The file.
        tensors: What it holds, in the order of the file.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file's header, and check it.

        Raises:
            ExportRefused: It breaks a rule of the format.
            OSError: The file cannot be read.
        """
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                header = file.read(header_length(file.read(LENGTH.size), size))
            placed = read_header(header, size)
        except DamagedFile as error:
            raise ExportRefused(f"{path.name} is damaged: {error}") from error
        shapes = json.loads(header)
        return cls(
            path,
            {
                each.name: StoredTensor(
                    each.dtype, tuple(shapes[each.name]["shape"]), each.begin, each.end - each.begin
                )
                for each in placed
            },
        )


def rename_tensors(path: Path, names: Mapping[str, str]) -> None:
    """Give the tensors of a file other names; what they hold stays, byte for byte.

    Raises:
        OSError: It cannot be read or written; the file is as it was then.
    """
    temporary = path.with_name(path.name + ".renamed")
    try:
        with path.open("rb") as source, temporary.open("wb") as target:
            length = header_length(source.read(LENGTH.size), path.stat().st_size)
            header = json.loads(source.read(length))
            new = {names.get(name, name): facts for name, facts in header.items()}
            encoded = json.dumps(new, separators=(",", ":")).encode()
            encoded += b" " * (-len(encoded) % 8)  # as the format wants the tensors aligned
            target.write(LENGTH.pack(len(encoded)))
            target.write(encoded)
            _copy(source, target)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while piece := source.read(CHUNK):
        target.write(piece)
