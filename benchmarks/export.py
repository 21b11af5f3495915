"""Exports: how fast their bytes arrive beside plain httpx, and that memory does not grow with them.

A checkpoint at a local server in a process of its own is exported, and the same files are streamed
to disk by httpx's blocking client alone, which is the faster of its two; in turn, each in a fresh
process, and which is first alternates. Downloads are compared, from the request for their addresses
to the write of the last byte; what the rest adds (checks for NaN, checksums, a sync to disk) is in
the table. Memory is the peak of the process that exports.

    python benchmarks/export.py [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio.to_thread
import tinker
from _export_worker import Measured
from _report import Bar, arguments, bars, rounds, table

from tinker_recovery.testing import LocalTinkerProcess

SMALL, LARGE, QUICK_LARGE = 1024, 32_768, 16_384
"""Ranks: an export has 8 kB for each."""
ROUNDS, QUICK_ROUNDS, QUICK_S = 9, 5, 25.0
PLAIN_FIRST = ("plain", "export")


async def saved(server: LocalTinkerProcess, rank: int) -> str:
    """A checkpoint whose adapter has this rank."""
    service = await anyio.to_thread.run_sync(
        lambda: tinker.ServiceClient(base_url=server.base_url, api_key=server.api_key)
    )
    client = await anyio.to_thread.run_sync(
        lambda: service.create_lora_training_client("Qwen/Qwen3-8B", rank=rank, seed=1).result()
    )
    path = (await client.save_state("s")).path
    await anyio.to_thread.run_sync(lambda: service.close("success").result())
    return str(path)


def one(how: str, server: LocalTinkerProcess, path: str) -> Measured:
    """One process."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(  # noqa: S603 - our own command
            [
                sys.executable,
                str(Path(__file__).with_name("_export_worker.py")),
                how,
                server.base_url,
                server.api_key,
                path,
                folder,
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


async def main() -> None:
    """Measure, and print."""
    given = arguments(__doc__)
    took: dict[tuple[str, str], list[Measured]] = {}
    with tempfile.TemporaryDirectory() as root:
        async with LocalTinkerProcess(Path(root)) as server:
            small = await saved(server, SMALL)
            large = await saved(server, QUICK_LARGE if given.quick else LARGE)
            most, within_s = (QUICK_ROUNDS, QUICK_S) if given.quick else (ROUNDS, None)
            for number in rounds(most, within_s=within_s):
                for size, path in (("small", small), ("large", large)):
                    # Whoever is second finds the server's caches warm, and the disk busy.
                    for how in (PLAIN_FIRST, PLAIN_FIRST[::-1])[number % 2]:
                        measured = await anyio.to_thread.run_sync(one, how, server, path)
                        took.setdefault((size, how), []).append(measured)

    def middle(key: tuple[str, str], what: str) -> float:
        return statistics.median(float(getattr(each, what)) for each in took[key])

    table(
        ("what", "MB", "download MB/s", "whole s", "peak MB"),
        [
            (
                " ".join(key),
                f"{middle(key, 'size_bytes') / 1e6:.0f}",
                f"{middle(key, 'size_bytes') / 1e6 / middle(key, 'download_s'):.0f}",
                f"{middle(key, 'whole_s'):.2f}",
                f"{middle(key, 'peak_mb'):.0f}",
            )
            for key in sorted(took, key=lambda each: (each[0] != "small", each[1] != "plain"))
        ],
    )
    pairs = zip(took["large", "plain"], took["large", "export"], strict=True)
    bars(
        "export",
        [
            Bar(
                "download throughput of plain httpx's",
                statistics.median(each.download_s / ours.download_s for each, ours in pairs),
                0.9,
                "higher",
            ),
            Bar(
                "peak memory of a large export, of a small one's",
                middle(("large", "export"), "peak_mb") / middle(("small", "export"), "peak_mb"),
                1.15,
            ),
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    asyncio.run(main())
