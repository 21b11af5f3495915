"""A service made up here whose checkpoints are verified: it lists, loads, answers and exports."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx
import tinker
from made import LINEAGE, NOW, record
from pydantic import SecretStr
from tinker import types

from tinker_recovery import RecoveryPolicy
from tinker_recovery.checkpoints import Finding, checkpoint_metadata
from tinker_recovery.journal import Journal, Notebook
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.retention import verifier as verifying
from tinker_recovery.retention.verifier import Verifier
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service.export import Limits

URL = "http://127.0.0.1:1"

Files = Mapping[str, bytes]


def whole(*numbers: float) -> bytes:
    """A safetensors file that holds these numbers."""
    data = struct.pack(f"<{len(numbers)}f", *numbers)
    said = {"w": {"dtype": "F32", "shape": [len(numbers)], "data_offsets": [0, len(data)]}}
    header = json.dumps(said).encode()
    return struct.pack("<Q", len(header)) + header + data


def levels(found: list[Finding]) -> dict[str, bool]:
    return {each.level: each.ok for each in found}


def refused(status: HTTPStatus, said: str = "no such checkpoint") -> tinker.APIStatusError:
    reply = httpx.Response(status, request=httpx.Request("POST", "http://127.0.0.1:1"))
    kinds: dict[int, type[tinker.APIStatusError]] = {
        400: tinker.BadRequestError,
        401: tinker.AuthenticationError,
        404: tinker.NotFoundError,
        503: tinker.InternalServerError,
    }
    kind = kinds.get(status, tinker.APIStatusError)
    return kind(said, response=reply, body={"detail": said})


class Service:
    """It lists what is put into it, says what a run and its checkpoints are, and loads them."""

    def __init__(self) -> None:
        self.listed: dict[str, list[dict[str, Any]]] = {}
        self.rank = 8
        self.status = 200
        self.run_status = 200
        self.sizes: dict[str, int] = {}
        """What is noted of sizes afterwards."""
        self.checksums: dict[str, str] = {}
        """What is noted of files, from one look to the next."""
        self.canaries: dict[str, str] = {}
        """What the journal has of the canary's answers."""
        self.prompts: list[Any] = []
        """What the canary asked."""
        self.log: list[str] = []
        """The sessions that were opened and closed, and the exports that were deleted."""
        self.refusals: list[Exception] = []
        """What the next attempts to load are answered with."""
        self.answer: tuple[float, ...] | Exception | None = (-1.0, -2.0)
        """What the canary answers; None for nothing at all."""
        self.exports: list[Files | Exception] = [{"a.safetensors": whole(1.0, 2.0)}]
        """The files of each export in turn; the last of them for ever."""
        self.export_bytes: int | None = 300
        """How large the service says an export is."""
        self.download_error: Exception | None = None

    def save(self, step: int, run: str = "a", **changes: Any) -> str:
        made = record(step, run)
        parent = changes.pop("parent", None)
        about = changes.pop("about", {})
        entry = {
            "checkpoint_id": f"weights/{step}",
            "checkpoint_type": "training",
            "time": NOW.isoformat(),
            "tinker_path": made.path,
            "size_bytes": 10,
            "user_metadata": checkpoint_metadata(
                step=step, lineage=LINEAGE, attempt=run, parent=parent, saved_by="schedule", **about
            ),
            **changes,
        }
        self.listed.setdefault(run, []).append(entry)
        return made.path

    # What it is asked over HTTP

    def _answer(self, request: httpx.Request) -> httpx.Response:
        parts = request.url.path.removeprefix("/api/v1/").split("/")
        if request.method == "DELETE":
            self.log.append(f"{'/'.join(parts[3:])} deleted")
            return httpx.Response(200, json={})
        if parts[-1] == "weights_info":
            said = {"base_model": "m", "is_lora": True, "lora_rank": self.rank}
            return httpx.Response(self.status, json=said)
        if parts[-1] == "checkpoints":
            return httpx.Response(200, json={"checkpoints": self.listed.get(parts[1], [])})
        run = types.TrainingRun(
            training_run_id=parts[1],
            base_model="m",
            model_owner="me",
            is_lora=True,
            lora_rank=8,
            last_request_time=NOW,
        )
        return httpx.Response(self.run_status, json=run.model_dump(mode="json"))

    # Its sessions, as a backend

    async def connect(self, origin: Any, *, patience: Any) -> Any:
        del patience
        number = 1 + sum(each.startswith("load ") for each in self.log)
        self.log.append(f"load {origin.path}")
        if self.refusals:
            raise self.refusals.pop(0)
        self.log.append(f"open {number}")
        return SimpleNamespace(run_id=f"session{number}", training=self, number=number)

    async def close(self, connection: Any, status: str, detail: str, *, deadline_s: float) -> None:
        del detail, deadline_s
        self.log.append(f"close {connection.number}: {status}")

    def forward(self, batch: list[types.Datum], loss: str) -> Any:
        assert loss == "cross_entropy"
        self.prompts.append(batch)
        if not isinstance(self.answer, tuple):
            return _pending(self.answer)
        data = SimpleNamespace(data=list(self.answer))
        return _pending(SimpleNamespace(loss_fn_outputs=[{"logprobs": data}]))

    def save_weights_external(self, name: str, *, ttl_seconds: int) -> Any:
        del ttl_seconds
        self.files = self.exports.pop(0) if len(self.exports) > 1 else self.exports[0]
        if isinstance(self.files, Exception):
            return _pending(self.files)
        run = self.log[-1].removeprefix("open ")
        path = f"tinker://session{run}/external_weights/{name}"
        entry = {"checkpoint_type": "external", "time": NOW.isoformat()}
        mine = {"tinker_path": path, "checkpoint_id": name, "size_bytes": self.export_bytes}
        other = {"tinker_path": path + "x", "checkpoint_id": name + "x", "size_bytes": 7}
        self.listed[f"session{run}"] = [entry | other, entry | mine]
        return _pending(SimpleNamespace(path=path))

    def download(self, path: str, folder: Path, **how: Any) -> Any:
        """In place of the :class:`Download` of the same arguments."""
        assert "/external_weights/" in path
        self.listed_bytes = how["listed_bytes"]

        async def files() -> dict[str, Path]:
            assert not isinstance(self.files, Exception)
            if self.download_error is not None:
                raise self.download_error
            how["received"](100)
            for name, content in self.files.items():
                (folder / name).write_bytes(content)
            return {name: folder / name for name in self.files}

        return SimpleNamespace(files=files)

    # Somebody who verifies

    @asynccontextmanager
    async def _verifier(self, limits: Limits) -> AsyncIterator[Verifier]:
        endpoint = Endpoint(URL, SecretStr("tml-x"))
        transport = httpx.MockTransport(self._answer)
        async with (
            StatusReader(endpoint, transport=transport, wall=NOW.timestamp) as reader,
            Notebook(Journal(None, service=URL)) as notebook,
        ):
            for where, said in self.checksums.items():
                await notebook.note_files(where, said)
            for where, said in self.canaries.items():
                await notebook.note_canary(where, said)
            backend: Any = self
            made = Collaborators(RecoveryPolicy(), backend, reader, notebook)
            with mock.patch.object(verifying, "Download", self.download):
                yield Verifier(made, limits=limits)

    async def verify(
        self, path: str, *, noted: int | None = None, limits: Limits | None = None, **asked: Any
    ) -> list[Finding]:
        async with self._verifier(limits or Limits()) as verifier:
            notebook = verifier.collaborators.notebook
            if noted is not None:
                await notebook.note_sizes({path: noted})
            found = await verifier.verify(path, **asked)
            notes = await notebook.notes()
            self.sizes, self.checksums = dict(notes.sizes), dict(notes.files)
            return found


def _pending(result: Any) -> Any:
    """What the SDK returns, with its result there or still to come."""
    future: Future[Any] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    elif result is not None:
        future.set_result(result)
    return SimpleNamespace(future=lambda: future)
