"""The process that uploads a folder: ``python -m tinker_recovery.export.upload``, by ``hub``.

``huggingface_hub`` blocks, and has threads of its own. In a process it can be ended at any time,
and nothing of it is left in the program that trains. The order comes on stdin as JSON, what became
of it goes to stdout, and the token is the library's own to find: in HF_TOKEN, or where
``hf auth login`` has put it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tinker_recovery.errors import ExportRefused, ExportUnavailable
from tinker_recovery.export.manifest import MANIFEST, Manifest

_HARMLESS = frozenset({".gitattributes", "README.md"})
_LATER = frozenset({408, 409, 412, 423, 425, 429})
_CLIENTS = frozenset({"httpx", "httpx2", "httpcore", "requests", "urllib3", "hf_xet"})
_NO_ROOM = ("quota", "storage limit", "storage_limit", "exceeded your", "storage usage")


def upload(order: dict[str, Any]) -> dict[str, Any]:
    """Upload a folder as one commit, unless the repository holds it already.

    Raises:
        ExportRefused: The repository is another run's, or the token may not write to it.
        ExportUnavailable: The hub is out of reach, or has no room.
    """
    from huggingface_hub import errors  # noqa: PLC0415 - large, and only needed here

    try:
        return _upload(order)
    except errors.HfHubHTTPError as error:
        raise _of_status(error.response.status_code, str(error), order["repository"]) from None
    except errors.LocalTokenNotFoundError as error:
        raise ExportRefused(f"the hub needs a token: set HF_TOKEN ({error})") from None
    except Exception as error:
        # Which HTTP client the library has differs between its versions.
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, OSError) or library in _CLIENTS:
            raise ExportUnavailable(f"the hub at {_hub()} is out of reach: {error!r}") from None
        raise


def _hub() -> str:
    from huggingface_hub import constants  # noqa: PLC0415 - only here

    return constants.ENDPOINT


def _upload(order: dict[str, Any]) -> dict[str, Any]:
    from huggingface_hub import (  # noqa: PLC0415 - large, and only needed here
        CommitOperationAdd,
        CommitOperationDelete,
        HfApi,
    )

    mine = Manifest.from_text(order["manifest"])
    api = HfApi(library_name="tinker-recovery")
    repo_id = api.create_repo(order["repository"], private=order["private"], exist_ok=True).repo_id
    held = _held(api, repo_id)
    url = f"{api.endpoint}/{repo_id}"
    if held is not None and held.digest == mine.digest and held.checkpoint == mine.checkpoint:
        return {"repository": repo_id, "url": url, "commit": None}
    if held is not None and _whose(held) != _whose(mine):
        raise ExportRefused(
            f"{repo_id} holds another run, {held.checkpoint.run!r} ({_whose(held)}): push this "
            f"one, {mine.checkpoint.run!r} ({_whose(mine)}), to a repository of its own"
        )
    there = {each.rfilename for each in api.model_info(repo_id).siblings or []}
    if held is None and (others := sorted(there - _HARMLESS)):
        raise ExportRefused(
            f"{repo_id} holds {', '.join(others[:3])}, which no export of "
            "tinker_recovery put there: push to a repository of its own"
        )
    # File by file, and not the folder: one that is missing fails, and is not left out.
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, os.path.join(order["folder"], name))  # noqa: PTH118 - it takes a text
        for name in (*mine.files, MANIFEST)
    ]
    operations.append(CommitOperationAdd("README.md", order["card"].encode()))
    operations += [
        CommitOperationDelete(each)
        for each in (held.files if held else ())
        if each not in mine.files and each in there
    ]
    done = api.create_commit(
        repo_id,
        operations,
        commit_message=order["title"],
        commit_description=order["description"],
    )
    return {"repository": repo_id, "url": url, "commit": done.oid}


def _whose(manifest: Manifest) -> str:
    return manifest.checkpoint.lineage or manifest.checkpoint.path.partition("/weights/")[0]


def _held(api: Any, repo_id: str) -> Manifest | None:
    """The manifest that a repository holds; None if it has none yet."""
    from huggingface_hub import get_session, hf_hub_url  # noqa: PLC0415 - only here
    from huggingface_hub.utils._headers import build_hf_headers  # noqa: PLC0415 - only here
    from huggingface_hub.utils._http import hf_raise_for_status  # noqa: PLC0415 - only here

    # Of httpx or of requests, by its version; both follow a repository that was renamed.
    reply = get_session().get(
        hf_hub_url(repo_id, MANIFEST, endpoint=api.endpoint),
        headers=build_hf_headers(library_name="tinker-recovery"),
    )
    if reply.status_code == 404:  # noqa: PLR2004 - HTTP's own number
        return None
    hf_raise_for_status(reply)
    return Manifest.from_text(reply.text)


def _of_status(status: int, said: str, repository: str) -> ExportRefused | ExportUnavailable:
    what = " ".join(said.split())[:500]
    if status in (402, 413, 507) or any(word in said.lower() for word in _NO_ROOM):
        return ExportUnavailable(
            f"the hub has no room for {repository} (HTTP {status}, quota): {what}"
        )
    if status == 401:  # noqa: PLR2004 - HTTP's own number
        return ExportRefused(
            f"the hub refuses the token (HTTP 401): set HF_TOKEN to one that is valid; {what}"
        )
    if status == 403:  # noqa: PLR2004 - HTTP's own number
        return ExportRefused(
            f"the token may not write to {repository} (HTTP 403): give HF_TOKEN the role write; "
            f"{what}"
        )
    if status in _LATER or status >= 500:  # noqa: PLR2004 - the server's errors
        return ExportUnavailable(f"the hub is not available (HTTP {status}): {what}")
    return ExportRefused(f"the hub refuses {repository} (HTTP {status}): {what}")


def main() -> None:
    """Read the order, carry it out, say what became of it."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    order = json.load(sys.stdin)
    try:
        reply = upload(order)
    except ExportRefused as error:
        reply = {"refused": str(error)}
    except ExportUnavailable as error:
        reply = {"unavailable": str(error)}
    print(json.dumps(reply))  # noqa: T201 - what the parent reads


if __name__ == "__main__":
    main()
