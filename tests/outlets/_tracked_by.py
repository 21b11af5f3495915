"""A process that writes points into a real tracker, reads them back, and prints what is there.

In a process of its own, since these libraries leave threads and warnings behind.
``_tracked_by.py LIBRARY FOLDER`` prints rows of ``[step, loss, attempt]`` in the order of writing.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinker_recovery.outlets.trackers import ATTEMPT, RECOVERIES, STEP, Point, trackers_by

STEPS = 9


def points() -> list[Point]:
    """Of a run that reported seven steps, went back to the fifth, and reported nine."""
    first = [Point("sft", step, {"loss": 100.0 + step}, 1, 0, 0) for step in range(7)]
    return first + [Point("sft", step, {"loss": float(step)}, 2, 5, 1) for step in range(5, STEPS)]


async def track(tracker: object) -> None:
    """Write them all."""
    for worker in trackers_by([tracker]):
        for point in points():
            worker.put(point)
        await worker.finish(30.0)


Row = list[float]


def wandb(folder: Path) -> list[Row]:
    """Offline; the rows of its history."""
    import wandb as library  # noqa: PLC0415 - the one that is asked for
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415 - as above

    os.environ["WANDB_SILENT"] = "true"
    run = library.init(mode="offline", dir=str(folder), project="test")
    asyncio.run(track(run))
    run.finish()
    (file,) = folder.rglob(f"*{run.id}.wandb")
    rows: list[Row] = []
    axes: dict[str, str] = {}
    until = time.monotonic() + 20.0
    while not rows and time.monotonic() < until:
        time.sleep(0.1)  # its own process may still be writing
        for data in _log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append([row[STEP], row["loss"], row[ATTEMPT]])
            elif record.WhichOneof("record_type") == "metric":
                axes[record.metric.name] = record.metric.step_metric
    assert axes == {STEP: "", "loss": STEP, ATTEMPT: STEP, RECOVERIES: STEP}, axes
    return rows


def _log_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format behind a header of seven bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # whole, or its last part
            yield whole
            whole = b""


def mlflow(folder: Path) -> list[Row]:
    """In SQLite; its history by time."""
    import mlflow as library  # noqa: PLC0415 - the one that is asked for

    library.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    with library.start_run() as run:
        asyncio.run(track(run))
    client = library.MlflowClient()
    losses, attempts = (
        sorted(client.get_metric_history(run.info.run_id, name), key=lambda each: each.timestamp)
        for name in ("loss", ATTEMPT)
    )
    assert len({each.timestamp for each in losses}) == len(losses)
    return [
        [loss.step, loss.value, attempt.value]
        for loss, attempt in zip(losses, attempts, strict=True)
    ]


def trackio(folder: Path) -> list[Row]:
    """In its local database."""
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio as library  # noqa: PLC0415 - the one that is asked for
    from trackio.sqlite_storage import SQLiteStorage  # noqa: PLC0415 - as above

    run = library.init(project="test", embed=False)
    asyncio.run(track(run))
    run.finish()
    rows = SQLiteStorage.get_logs("test", run.name)
    return [[row["step"], row["loss"], row[ATTEMPT]] for row in rows]


def tensorboardX(folder: Path) -> list[Row]:  # noqa: N802 - the library's name
    """In files; what TensorBoard shows of them."""
    from tensorboardX import SummaryWriter  # noqa: PLC0415 - the one that is asked for

    return _summaries(SummaryWriter(str(folder)), folder)


def torch(folder: Path) -> list[Row]:
    """The same by torch's writer."""
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - the one that is asked for

    return _summaries(SummaryWriter(str(folder)), folder)


def _summaries(writer: Any, folder: Path) -> list[Row]:
    from tensorboard.backend.event_processing import (  # noqa: PLC0415 - where it is installed
        event_accumulator,
    )

    asyncio.run(track(writer))
    writer.close()
    shown = event_accumulator.EventAccumulator(str(folder))
    shown.Reload()
    return [
        [loss.step, loss.value, attempt.value]
        for loss, attempt in zip(shown.Scalars("loss"), shown.Scalars(ATTEMPT), strict=True)
    ]


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))  # noqa: T201 - for the test
