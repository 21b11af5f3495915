"""What the service lists becomes part of an address, and of no other part of it."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tinker_recovery import StatusRefused
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.routes import route


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("step-12-abc?x", b"step-12-abc%3Fx"),
        ("step-12#x", b"step-12%23x"),
        ("step%2D12", b"step%252D12"),
        ("a b", b"a%20b"),
        ("a;b&c=d", b"a%3Bb%26c%3Dd"),
        ("später", b"sp%C3%A4ter"),
        ("step-12", b"step-12"),
    ],
)
async def test_a_deletion_asks_for_the_listed_name_and_no_other(name: str, sent: bytes) -> None:
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method != "POST":
            asked.append(request.url.raw_path)
        return httpx.Response(200, json={})

    endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))
    async with StatusReader(endpoint, transport=httpx.MockTransport(answer)) as reader:
        calls = CheckpointCalls(reader.http)
        await calls.delete(f"tinker://s:train:0/weights/{name}")
        await calls.set_ttl(f"tinker://s:train:0/weights/{name}", None)
        with pytest.raises(StatusRefused):
            await reader.run(f"r/{name}/..")
    path = b"/api/v1/training_runs/s:train:0/checkpoints/weights/" + sent
    assert asked == [path, path + b"/ttl"]


@pytest.mark.parametrize("part", ["..", ".", "", "a/../b", "a//b", "/"])
async def test_a_name_that_leads_elsewhere_is_refused(part: str) -> None:
    endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))
    async with StatusReader(endpoint) as reader:
        with pytest.raises(StatusRefused, match="not part of an address"):
            await CheckpointCalls(reader.http).delete(f"tinker://r/weights/{part}")


@given(st.lists(st.text(min_size=1), min_size=1, max_size=3))
def test_every_part_is_found_again_as_it_was(parts: list[str]) -> None:
    try:
        made = route("training_runs", *parts)
    except StatusRefused:
        return
    url = httpx.URL(f"http://h/api/v1/{made}")
    assert url.query == b""
    assert not url.fragment
    assert url.path == "/api/v1/training_runs/" + "/".join(parts)
