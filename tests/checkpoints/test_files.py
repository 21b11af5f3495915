"""Every corruption is caught by the level that should, on real safetensors files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from inspection import set_file_chunk
from numpy.typing import NDArray

from tinker_recovery.checkpoints import check_bytes, files
from tinker_recovery.checkpoints.files import inspect_file
from tinker_recovery.checkpoints.safetensors_header import DamagedFile

RNG = np.random.default_rng(7)
TENSORS: dict[str, NDArray[Any]] = {
    "lora_A": RNG.standard_normal((64, 40)).astype(np.float32),
    "lora_B": np.zeros((40, 64), dtype=np.float32),  # fresh, and that is fine
    "exp_avg": RNG.standard_normal((64, 40)).astype(np.float32),
    "half": RNG.standard_normal(33).astype(np.float16),
    "double": RNG.standard_normal(5),
    "step": np.array([12], dtype=np.int64),
    "none": np.zeros((0, 4), dtype=np.float32),
}
CONTENT = safetensors.numpy.save(TENSORS, {"made": "for a test"})


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _header(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", content[:8])
    said: dict[str, Any] = json.loads(content[8 : 8 + length])
    return said


def _with_header(change: Callable[[dict[str, Any]], object], extra: bytes = b"") -> bytes:
    (length,) = struct.unpack("<Q", CONTENT[:8])
    said = _header(CONTENT)
    change(said)
    header = json.dumps(said).encode()
    return struct.pack("<Q", len(header)) + header + CONTENT[8 + length :] + extra


def _begin(name: str) -> int:
    (length,) = struct.unpack("<Q", CONTENT[:8])
    return 8 + int(length) + int(_header(CONTENT)[name]["data_offsets"][0])


def _patched(at: int, data: bytes) -> bytes:
    return CONTENT[:at] + data + CONTENT[at + len(data) :]


def _shift(said: dict[str, Any], name: str, by: int) -> None:
    said[name]["data_offsets"] = [offset + by for offset in said[name]["data_offsets"]]


def _last(said: dict[str, Any]) -> str:
    return max(
        (name for name in said if name != "__metadata__"),
        key=lambda name: said[name]["data_offsets"],
    )


def test_a_whole_file_is_found_whole_and_its_facts_are_recorded(tmp_path: Path) -> None:
    file = _written(tmp_path / "f", CONTENT)
    facts = inspect_file(file)
    assert facts.size_bytes == len(CONTENT)
    assert inspect_file(file) == facts
    finding, recorded = check_bytes([file])
    assert finding.ok
    assert recorded == {file: facts}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "header length alone takes 8"),
        (CONTENT[:5], "header length alone takes 8"),
        (CONTENT[:100], "the file has only 100"),
        (CONTENT[:-1], "cut short"),
        (CONTENT + b"\0", "1 bytes follow the last tensor"),
        (struct.pack("<Q", 10**9) + CONTENT[8:], "claims 1000000000 bytes"),
        (struct.pack("<Q", 0) + CONTENT[8:], "claims 0 bytes"),
        (_patched(8, b"["), "not JSON"),
        (_patched(12, b"\xff"), "not JSON"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
        (struct.pack("<Q", 4) + b"  {}", "not a JSON object"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "not JSON"),
        (_with_header(lambda h: h.update(__metadata__=[1])), "__metadata__"),
        (_with_header(lambda h: _shift(h, _last(h), 4), b"\0" * 4), "a hole of 4 bytes"),
        (_with_header(lambda h: _shift(h, _last(h), -2)), "an overlap of 2 bytes"),
        (_with_header(lambda h: h.pop(_last(h))), "bytes follow the last tensor"),
        (_with_header(lambda h: h["half"].update(dtype="F32")), "F32 of shape [33], takes 132"),
        (_with_header(lambda h: h["half"].update(shape=[34])), "takes 68 bytes"),
        (_with_header(lambda h: h["half"].update(dtype="F17")), "unknown dtype 'F17'"),
        (_with_header(lambda h: h["half"].update(shape=[-33])), "needs a dtype"),
        (_with_header(lambda h: h["half"].update(shape=[True, 33])), "needs a dtype"),
        (_with_header(lambda h: h["half"].update(data_offsets=[0])), "needs a dtype"),
        (_with_header(lambda h: h["half"].update(more=1)), "needs a dtype"),
        (_with_header(lambda h: h.update(half="gone")), "needs a dtype"),
        (CONTENT.replace(b'"lora_B"', b'"lora_A"'), "has a key twice"),
        (_patched(_begin("lora_A") + 400, struct.pack("<f", np.nan)), "'lora_A' holds NaN"),
        (_patched(_begin("exp_avg"), struct.pack("<f", -np.inf)), "'exp_avg' holds NaN"),
        (_patched(_begin("half") + 4, np.float16(np.inf).tobytes()), "'half' holds NaN"),
        (_patched(_begin("double") + 8, struct.pack("<d", np.nan)), "'double' holds NaN"),
    ],
)
def test_a_damaged_file_is_refused_with_the_rule_it_breaks(
    tmp_path: Path, content: bytes, why: str
) -> None:
    file = _written(tmp_path / "f", content)
    with pytest.raises(DamagedFile) as caught:
        inspect_file(file)
    assert why in str(caught.value)
    finding, facts = check_bytes([file])
    assert (finding.ok, finding.level, facts) == (False, "bytes", {})
    assert why in finding.reason


def test_the_library_itself_reads_what_passes_and_not_what_breaks_its_rules(tmp_path: Path) -> None:
    moved = _with_header(lambda h: _shift(h, _last(h), 4), b"\0" * 4)
    for content in (CONTENT[:-1], CONTENT + b"\0", moved):
        with pytest.raises(safetensors.SafetensorError):
            safetensors.numpy.load(content)
    assert set(safetensors.numpy.load(CONTENT)) == set(TENSORS)
    inspect_file(_written(tmp_path / "f", CONTENT))


def test_a_bit_that_flips_changes_the_checksum(tmp_path: Path) -> None:
    file = _written(tmp_path / "f", CONTENT)
    facts = inspect_file(file)
    at = _begin("lora_A") + 100
    _written(file, _patched(at, bytes([CONTENT[at] ^ 1])))
    changed = inspect_file(file)  # by itself it is a good file
    assert changed.size_bytes == facts.size_bytes
    assert changed.sha256 != facts.sha256


@settings(max_examples=60)
@given(at=st.integers(0, len(CONTENT) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_damage_or_changes_the_checksum(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "flipped"
    facts = inspect_file(_written(file, CONTENT))
    _written(file, _patched(at, bytes([CONTENT[at] ^ (1 << bit)])))
    try:
        changed = inspect_file(file)
    except DamagedFile:
        return
    assert changed.sha256 != facts.sha256


@pytest.mark.parametrize("behind", [0, 3])
def test_a_tail_of_zeros_that_begins_within_a_tensor_is_a_write_that_was_not_finished(
    tmp_path: Path, behind: int
) -> None:
    tensors = {
        "a": np.ones((64, 64), dtype=np.float32),
        **{f"z{n}": np.ones(64, dtype=np.float32) for n in range(behind)},
    }
    content = safetensors.numpy.save(tensors)
    tail = 4 * 64 * behind + 4096
    file = _written(tmp_path / "f", content[:-tail] + b"\0" * tail)
    with pytest.raises(DamagedFile, match="ends in zeros from within tensor 'a' on"):
        inspect_file(file)
    # A page of zeros in the midst, or whole tensors of them, is nothing unusual.
    last = 4 * 64 * behind + 2048
    inspect_file(_written(file, content[:-tail] + b"\0" * 2048 + content[-last:]))
    tensors["a"][:] = 0
    inspect_file(_written(file, safetensors.numpy.save(tensors)))


def test_zeros_are_followed_over_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_file_chunk(monkeypatch, 1024)
    tensor = np.ones(4096, dtype=np.float32)
    tensor[-1500:] = 0
    with pytest.raises(DamagedFile, match="ends in zeros"):
        inspect_file(_written(tmp_path / "f", safetensors.numpy.save({"t": tensor})))
    tensor[-1500:-1000] = 1
    inspect_file(_written(tmp_path / "f", safetensors.numpy.save({"t": tensor})))


def test_a_file_that_is_gone_is_damage_and_one_that_cannot_be_read_is_not(tmp_path: Path) -> None:
    finding, _ = check_bytes([tmp_path / "gone"])
    assert not finding.ok
    assert finding.reason == "gone: the file is gone"
    with pytest.raises(OSError, match="directory"):
        check_bytes([tmp_path])
    finding, _ = check_bytes([])
    assert (finding.ok, finding.reason) == (False, "it has no files")


FLOATS: dict[str, tuple[str, int]] = {"F16": ("<f2", 2), "F32": ("<f4", 4), "F64": ("<f8", 8)}


@given(dtype=st.sampled_from(sorted(FLOATS)), data=st.binary(max_size=64), repeat=st.integers(1, 3))
def test_values_that_are_not_finite_are_found_exactly(dtype: str, data: bytes, repeat: int) -> None:
    name, size = FLOATS[dtype]
    chunk = data[: len(data) // size * size] * repeat
    numbers = np.frombuffer(chunk, dtype=name)
    assert files.holds_non_finite(chunk, dtype) == (not np.isfinite(numbers).all())


def test_bf16_is_judged_as_the_upper_half_of_a_single() -> None:
    for bits in range(0, 1 << 16, 5):
        half = struct.pack("<H", bits)
        (single,) = struct.unpack("<f", b"\0\0" + half)
        assert files.holds_non_finite(b"\0\0" + half, "BF16") == (not np.isfinite(single))


@pytest.mark.parametrize(
    ("dtype", "byte", "found"),
    [
        ("F8_E4M3", 0x7F, True),
        ("F8_E4M3", 0x7E, False),
        ("F8_E5M2", 0x7C, True),
        ("F8_E5M2", 0x7B, False),
        ("F8_E8M0", 0xFF, True),
        ("I8", 0xFF, False),
    ],
)
def test_eight_bit_floats_are_judged_by_their_own_rules(
    dtype: str, byte: int, *, found: bool
) -> None:
    assert files.holds_non_finite(bytes([0, byte]), dtype) is found
