"""LocalHub: a model hub for tests, with the unmodified ``huggingface_hub`` as its client.

It serves what ``create_repo``, ``upload_folder``, ``repo_info`` and a download of one file ask for:
repositories, upload modes, large files (LFS), commits. Large files go by LFS, which the library
uses if HF_HUB_DISABLE_XET=1 is in its environment.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tinker_recovery.testing._host import _Server, listen

TOKEN = "hf_local_token"  # noqa: S105 - opens nothing but this
_LARGE = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True, slots=True)
class HubCommit:
    """One commit of a repository.

    Attributes:
        oid: Its id.
        title: The first line of its message.
        description: The rest.
        files: What the repository holds from then on, by path.
    """

    oid: str
    title: str
    description: str
    files: dict[str, bytes] = field(repr=False)


@dataclass(slots=True)
class HubRepository:
    """A repository of models.

    Attributes:
        private: Whether only its owner sees it.
        commits: The oldest first.
    """

    private: bool
    commits: list[HubCommit] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """What it holds now, by path."""
        return self.commits[-1].files if self.commits else {}


@dataclass(slots=True)
class _Fault:
    status: int
    message: str
    times: int
    path: str
    delay_s: float


class LocalHub:
    """A hub on this machine: ``async with LocalHub() as hub:``, in a thread of its own.

    Args:
        owner: Whose token :attr:`token` is.
        port: Port to listen on, at 127.0.0.1; 0 for a free one.
    """

    def __init__(self, *, owner: str = "me", port: int = 0) -> None:
        self.owner = owner
        self.token = TOKEN
        self.endpoint = ""
        """Where it listens, for HF_ENDPOINT; known once it is entered."""
        self.repositories: dict[str, HubRepository] = {}
        """By ``owner/name``."""
        self.requests: list[str] = []
        """Method and path of each request so far."""
        self._port = port
        self._stored: dict[str, bytes] = {}
        self._faults: list[_Fault] = []
        self._thread: threading.Thread | None = None
        self._running: Future[tuple[asyncio.AbstractEventLoop, _Server]] = Future()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the library talks to this hub."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
        }

    def fail(
        self,
        status: int,
        message: str = "",
        *,
        times: int = 1,
        path: str = "",
        delay_s: float = 0.0,
    ) -> None:
        """Answer the next requests with a status.

        Args:
            status: The status; 0 to answer as ever, after ``delay_s``.
            message: The error in the answer.
            times: How many requests.
            path: Only those with this in their path.
            delay_s: Seconds to wait before the answer.
        """
        self._faults.append(_Fault(status, message, times, path, delay_s))

    def release(self) -> None:
        """Take all faults back."""
        self._faults.clear()

    async def __aenter__(self) -> Self:
        listener = listen("127.0.0.1", self._port)
        self.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"

        async def main() -> None:
            server = _Server(
                uvicorn.Config(
                    self._app(),
                    log_config=None,
                    log_level="critical",
                    access_log=False,
                    lifespan="off",
                    ws="none",
                )
            )
            loop = asyncio.get_running_loop()
            server.ready = lambda: self._running.set_result((loop, server))
            await server.serve([listener])
            me = asyncio.current_task()
            others = [task for task in asyncio.all_tasks() if task is not me]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._thread = threading.Thread(
            target=lambda: asyncio.run(main()), name="local-hub", daemon=True
        )
        self._thread.start()
        await asyncio.wrap_future(self._running)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop, server = self._running.result()
        loop.call_soon_threadsafe(server.stop)
        if self._thread is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._thread.join)

    def _app(self) -> Any:
        model = "/api/models/{owner}/{name}"
        app = Starlette(
            routes=[
                Route("/api/whoami-v2", self._whoami),
                Route("/api/repos/create", self._create, methods=["POST"]),
                Route("/api/validate-yaml", self._validate, methods=["POST"]),
                Route(model, self._info),
                Route(model + "/revision/{revision}", self._info),
                Route(model + "/tree/{revision}", self._tree),
                Route(model + "/tree/{revision}/{path:path}", self._tree),
                Route(model + "/preupload/{revision}", self._preupload, methods=["POST"]),
                Route(model + "/commit/{revision}", self._commit, methods=["POST"]),
                Route("/{owner}/{name}.git/info/lfs/objects/batch", self._batch, methods=["POST"]),
                Route("/{owner}/{name}/resolve/{revision}/{path:path}", self._resolve),
                Route("/lfs/{oid}", self._put, methods=["PUT"]),
            ]
        )

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            refusal = await self._refusal(Request(scope))
            await (refusal or app)(scope, receive, send)

        return guarded

    async def _refusal(self, request: Request) -> Response | None:
        path = request.url.path
        self.requests.append(f"{request.method} {path}")
        for fault in self._faults:
            if fault.times and fault.path in path:
                fault.times -= 1
                await asyncio.sleep(fault.delay_s)
                if fault.status:
                    return _error(fault.status, fault.message or f"injected {fault.status}")
                break
        signed = path.startswith("/lfs/")
        if not signed and request.headers.get("authorization") != f"Bearer {self.token}":
            return _error(401, "Invalid username or password.")
        return None

    async def _whoami(self, _: Request) -> Response:
        return JSONResponse({"type": "user", "name": self.owner, "orgs": []})

    async def _create(self, request: Request) -> Response:
        body = await request.json()
        name = f"{body.get('organization') or self.owner}/{body['name']}"
        reply = {"url": f"{self.endpoint}/{name}", "name": name}
        if name in self.repositories:
            return JSONResponse({**reply, "error": "You already created this model repo"}, 409)
        # The first by later versions of the library, the second by those before 1.0.
        private = body.get("visibility") == "private" or body.get("private") is True
        self.repositories[name] = HubRepository(private)
        return JSONResponse(reply)

    async def _validate(self, request: Request) -> Response:
        content = str((await request.json())["content"])
        if content.startswith("---\n") and "\n---\n" not in content[4:]:
            return JSONResponse({"errors": [{"message": "the metadata does not end"}]}, 400)
        return JSONResponse({"errors": [], "warnings": []})

    def _found(self, request: Request) -> HubRepository | None:
        found = request.path_params
        return self.repositories.get(f"{found['owner']}/{found['name']}")

    async def _info(self, request: Request) -> Response:
        repository = self._found(request)
        if repository is None:
            return _missing("Repository", "RepoNotFound")
        found = request.path_params
        name = f"{found['owner']}/{found['name']}"
        return JSONResponse(
            {
                "_id": name,
                "id": name,
                "modelId": name,
                "private": repository.private,
                "sha": repository.commits[-1].oid if repository.commits else "0" * 40,
                "siblings": [{"rfilename": path} for path in sorted(repository.files)],
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    async def _tree(self, request: Request) -> Response:
        repository = self._found(request)
        if repository is None:
            return _missing("Repository", "RepoNotFound")
        return JSONResponse(
            [
                {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
                for path, content in sorted(repository.files.items())
            ]
        )

    async def _preupload(self, request: Request) -> Response:
        repository = self._found(request)
        if repository is None:
            return _missing("Repository", "RepoNotFound")
        asked = (await request.json())["files"]
        return JSONResponse(
            {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(_LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": self._oid(repository, each["path"]),
                    }
                    for each in asked
                ]
            }
        )

    @staticmethod
    def _oid(repository: HubRepository, path: str) -> str | None:
        content = repository.files.get(path)
        if content is None:
            return None
        large = path.endswith(_LARGE)
        return hashlib.sha256(content).hexdigest() if large else _blob(content)

    async def _batch(self, request: Request) -> Response:
        objects = (await request.json())["objects"]
        return JSONResponse(
            {
                "transfer": "basic",
                "objects": [
                    {"oid": each["oid"], "size": each["size"]}
                    | (
                        {}
                        if each["oid"] in self._stored
                        else {"actions": {"upload": {"href": f"{self.endpoint}/lfs/{each['oid']}"}}}
                    )
                    for each in objects
                ],
            },
            media_type="application/vnd.git-lfs+json",
        )

    async def _put(self, request: Request) -> Response:
        content = await request.body()
        oid = hashlib.sha256(content).hexdigest()
        if oid != request.path_params["oid"]:
            return _error(400, "its content has another checksum")
        self._stored[oid] = content
        return Response()

    async def _commit(self, request: Request) -> Response:
        repository = self._found(request)
        if repository is None:
            return _missing("Repository", "RepoNotFound")
        files, header = dict(repository.files), {"summary": "", "description": ""}
        for line in (await request.body()).splitlines():
            said = json.loads(line)
            value = said["value"]
            match said["key"]:
                case "header":
                    header |= value
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self._stored:
                        return _error(400, f"{value['path']} was not uploaded")
                    files[value["path"]] = self._stored[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"], None)
        number = len(repository.commits)
        said_all = json.dumps([number, header, sorted(map(_blob, files.values()))])
        oid = hashlib.sha1(said_all.encode()).hexdigest()  # noqa: S324 - as git names a commit
        repository.commits.append(HubCommit(oid, header["summary"], header["description"], files))
        found = request.path_params
        url = f"{self.endpoint}/{found['owner']}/{found['name']}/commit/{oid}"
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    async def _resolve(self, request: Request) -> Response:
        repository = self._found(request)
        if repository is None:
            return _missing("Repository", "RepoNotFound")
        content = repository.files.get(request.path_params["path"])
        if content is None:
            return _missing("Entry", "EntryNotFound")
        return Response(content, media_type="application/octet-stream")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status, {"X-Error-Message": message})


def _missing(what: str, code: str) -> Response:
    message = f"{what} not found"
    return JSONResponse({"error": message}, 404, {"X-Error-Code": code, "X-Error-Message": message})


def _blob(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's own
