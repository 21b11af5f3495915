"""A network between client and server: how long requests take, and that nothing is lost or left."""

from __future__ import annotations

import asyncio
import gc
import statistics
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
import tinker
from loops import bare_run
from wire import NO_TLS

from tinker_recovery.testing import LocalTinker, Network

RTT_S = 0.1


async def took_s(client: httpx.AsyncClient) -> float:
    began = time.monotonic()
    assert (await client.get("/api/v1/healthz")).is_success
    return time.monotonic() - began


def client_of(network: Network) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=network.base_url, verify=NO_TLS, timeout=30.0)


@pytest.mark.parametrize(("handshakes", "trips"), [(True, 3), (False, 1)])
async def test_a_request_takes_a_round_trip_and_the_first_of_a_connection_its_handshakes(
    *, handshakes: bool, trips: int
) -> None:
    async with (
        LocalTinker() as server,
        Network(server.base_url, rtt_s=RTT_S, handshakes=handshakes) as network,
        client_of(network) as client,
    ):
        assert await took_s(client) >= trips * RTT_S
        later = [await took_s(client) for _ in range(5)]
        assert network.connections == 1
    assert min(later) >= RTT_S
    assert min(later) < 2.5 * RTT_S


async def test_a_loop_trains_over_a_bad_network_as_over_none() -> None:
    async with (
        LocalTinker() as server,
        Network(server.base_url, rtt_s=0.01, jitter_s=0.02, loss=0.05, seed=3) as network,
    ):
        run_ids = [
            await bare_run(tinker.ServiceClient(base_url=url, api_key=server.api_key), steps=4)
            for url in (server.base_url, network.base_url)
        ]
        assert server.run_state(run_ids[0]) == server.run_state(run_ids[1])
        assert network.connections > 0


async def test_a_lost_packet_costs_its_resending_and_jitter_is_within_its_limit() -> None:
    async with LocalTinker() as server:
        async with (
            Network(server.base_url, rtt_s=0.0, loss=0.9, seed=1) as lossy,
            client_of(lossy) as client,
        ):
            assert await took_s(client) >= 0.2
        async with (
            Network(server.base_url, rtt_s=0.02, jitter_s=0.05) as jittery,
            client_of(jittery) as client,
        ):
            times = [await took_s(client) for _ in range(10)]
    assert min(times) >= 0.02
    assert statistics.median(times) < 1.0


async def test_leaving_it_breaks_connections_off_and_leaves_no_thread() -> None:
    async with LocalTinker() as server:
        async with Network(server.base_url, rtt_s=0.0) as network:
            client = client_of(network)
            await took_s(client)
        assert "network" not in {thread.name for thread in threading.enumerate()}
        with pytest.raises(httpx.TransportError):
            await client.get("/api/v1/healthz")
        await client.aclose()


async def test_where_nothing_listens_a_connection_is_broken_off() -> None:
    async with LocalTinker() as server:
        nowhere = server.base_url
    async with Network(nowhere, rtt_s=0.0) as network, client_of(network) as client:
        with pytest.raises(httpx.TransportError):
            await client.get("/api/v1/healthz")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base_url": "https://127.0.0.1:1"}, "base_url='https://127.0.0.1:1' is not allowed"),
        ({"rtt_s": -1.0}, "rtt_s=-1.0 is not allowed"),
        ({"rtt_s": float("nan")}, "rtt_s=nan is not allowed"),
        ({"jitter_s": float("inf")}, "jitter_s=inf is not allowed"),
        ({"loss": 1.0}, "loss=1.0 is not allowed"),
    ],
)
def test_what_no_network_is_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Network(**{"base_url": "http://127.0.0.1:1", **given})


async def test_a_half_closed_connection_is_kept_until_its_answer_came() -> None:
    """asyncio holds a connection's task only while its socket is read: not after its end."""
    asked = asyncio.Event()
    answer = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"question"
        asked.set()
        await answer.wait()
        writer.write(b"answer")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Network(f"http://127.0.0.1:{port}", rtt_s=0.0) as network:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(network.base_url).port)
        writer.write(b"question")
        writer.write_eof()
        with anyio.fail_after(30):
            await asked.wait()
            gc.collect()
            answer.set()
            assert await reader.read() == b"answer"
        writer.close()
