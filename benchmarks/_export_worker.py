"""One export, or one plain download of the same files, in a process of its own; see export.py.

    python benchmarks/_export_worker.py export|plain URL KEY PATH FOLDER

Prints as JSON: bytes downloaded, seconds of the download and of all, and the peak memory in MB.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
from pydantic import SecretStr

from tinker_recovery.export.exporter import Exporter, ExportProgress
from tinker_recovery.export.manifest import CheckpointFacts
from tinker_recovery.service.base import Endpoint
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.export import Limits
from tinker_recovery.service.export_session import make_export
from tinker_recovery.service.http import ServiceHttp, tls


@dataclass(frozen=True)
class Measured:
    """What one process measured."""

    size_bytes: int
    download_s: float
    whole_s: float
    peak_mb: float


async def export(endpoint: Endpoint, path: str, folder: Path) -> tuple[int, float]:
    """Export; bytes, and seconds of the download."""
    began = ended = 0.0
    size = 0

    def progress(now: ExportProgress) -> None:
        nonlocal began, ended, size
        if now.phase == "downloading":
            ended, size = time.perf_counter(), now.done_bytes
            began = began or ended

    async with Exporter(endpoint) as exporter:
        await exporter.export(CheckpointFacts(path=path, run="r"), folder, progress=progress)
    return size, ended - began


async def plain(endpoint: Endpoint, path: str, folder: Path) -> tuple[int, float]:
    """The same files by httpx alone."""
    http = ServiceHttp(endpoint, timeout_s=600.0)
    try:
        made = await make_export(path, http, limits=Limits())
        with httpx.Client(verify=tls()) as client:
            began = time.perf_counter()
            signed = await CheckpointCalls(http).signed_files(made.path)
            size = await anyio.to_thread.run_sync(fetch, client, signed.urls, folder)
            took = time.perf_counter() - began
        await CheckpointCalls(http).delete(made.path)
    finally:
        await http.aclose()
    return size, took


def fetch(client: httpx.Client, urls: Mapping[str, SecretStr], folder: Path) -> int:
    """Stream files to disk, as one would write it; by the blocking client, which is the faster."""
    size = 0
    for name, url in urls.items():
        with (
            client.stream("GET", url.get_secret_value()) as reply,
            (folder / name).open("wb") as file,
        ):
            for piece in reply.iter_bytes():
                size += file.write(piece)
    return size


def main() -> None:
    """Measure, and print."""
    how, url, key, path, folder = sys.argv[1:]
    endpoint = Endpoint(url, SecretStr(key))
    began = time.perf_counter()
    function = export if how == "export" else plain
    size, took = anyio.run(function, endpoint, path, Path(folder))
    whole = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(asdict(Measured(size, took, whole, peak))))


if __name__ == "__main__":
    main()
