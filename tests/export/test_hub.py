"""Publishing on a hub: the unmodified ``huggingface_hub`` against a hub of ours."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import httpx
import huggingface_hub
import pytest
import pytest_asyncio
from sweeps import pairs

from tinker_recovery.errors import ExportRefused, ExportUnavailable
from tinker_recovery.export.card import model_card
from tinker_recovery.export.hub import publish, repository_of
from tinker_recovery.export.manifest import CheckpointFacts, Manifest
from tinker_recovery.export.upload import _held
from tinker_recovery.testing import LocalHub

FACTS = CheckpointFacts(
    path="tinker://session:train:0/weights/step-6",
    run="sft",
    lineage="0123456789abcdef",
    step=6,
    base_model="Qwen/Qwen3-8B",
    metrics={"loss": 1.25},
    recoveries=2,
)


@pytest_asyncio.fixture
async def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[LocalHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    async with LocalHub() as hub:
        for name, value in hub.environment.items():
            monkeypatch.setenv(name, value)
        yield hub


def exported(
    folder: Path, facts: CheckpointFacts = FACTS, content: bytes = b"w" * 1000
) -> Manifest:
    """A folder that holds an export."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(content)
    names = ["adapter_config.json", "adapter_model.safetensors"]
    manifest = Manifest.of(folder, names, "safetensors", facts)
    manifest.write(folder)
    return manifest


async def test_each_checkpoint_is_one_commit_of_a_private_repository_with_a_card(
    hub: LocalHub, tmp_path: Path
) -> None:
    first = exported(tmp_path / "a")
    done = await publish(tmp_path / "a", first, "me/sft")
    repository = hub.repositories["me/sft"]
    (commit,) = repository.commits
    assert (done.repository, done.commit) == ("me/sft", commit.oid)
    assert done.url == f"{hub.endpoint}/me/sft"
    assert repository.private
    assert commit.title == "step 6 of run sft"
    assert f"lineage: {FACTS.lineage}" in commit.description
    assert FACTS.path in commit.description
    assert commit.files["adapter_model.safetensors"] == b"w" * 1000
    assert set(commit.files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tinker_recovery.json",
    }
    card = commit.files["README.md"].decode()
    assert card.startswith('---\nbase_model: "Qwen/Qwen3-8B"\nlibrary_name: peft\n')
    for said in ("<code>sft</code>", "<code>6</code>", "<code>1.25</code>", "<code>2</code>"):
        assert said in card
    assert FACTS.path in card.replace("&#95;", "_")

    second = exported(tmp_path / "b", replace(FACTS, step=8, path=f"{FACTS.path}8"), b"x" * 999)
    again = await publish(tmp_path / "b", second, "me/sft")
    assert [each.title for each in repository.commits] == ["step 6 of run sft", "step 8 of run sft"]
    assert again.commit == repository.commits[-1].oid


async def test_what_is_there_already_is_not_pushed_again(hub: LocalHub, tmp_path: Path) -> None:
    manifest = exported(tmp_path / "a")
    await publish(tmp_path / "a", manifest, "me/sft")
    assert (await publish(tmp_path / "a", manifest, "me/sft")).commit is None
    assert len(hub.repositories["me/sft"].commits) == 1


async def test_a_name_without_an_owner_is_the_tokens_own(hub: LocalHub, tmp_path: Path) -> None:
    done = await publish(tmp_path / "a", exported(tmp_path / "a"), "sft")
    assert list(hub.repositories) == ["me/sft"]
    assert done.repository == "me/sft"
    assert repository_of(push=True, run="<script> & 42") == "script-42"
    assert repository_of(push=True, run="...") == "adapter"
    assert repository_of(push="me/x", run="sft") == "me/x"


async def test_a_repository_of_another_run_is_refused(hub: LocalHub, tmp_path: Path) -> None:
    await publish(tmp_path / "a", exported(tmp_path / "a"), "me/sft")
    other = exported(tmp_path / "b", replace(FACTS, lineage="fedcba", run="other"))
    with pytest.raises(ExportRefused, match=r"holds another run, 'sft' \(0123456789abcdef\)"):
        await publish(tmp_path / "b", other, "me/sft")
    repository = hub.repositories["me/sft"]
    assert len(repository.commits) == 1
    files = repository.commits[0].files
    del files["tinker_recovery.json"]
    with pytest.raises(ExportRefused, match="which no export of tinker_recovery put there"):
        await publish(tmp_path / "a", exported(tmp_path / "a"), "me/sft")


async def test_another_format_takes_the_place_of_the_one_before(
    hub: LocalHub, tmp_path: Path
) -> None:
    await publish(tmp_path / "a", exported(tmp_path / "a"), "me/sft")
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "adapter.gguf").write_bytes(b"GGUF")
    manifest = Manifest.of(folder, ["adapter.gguf"], "gguf", FACTS)
    manifest.write(folder)
    await publish(folder, manifest, "me/sft")
    files = set(hub.repositories["me/sft"].files)
    assert files == {"README.md", "adapter.gguf", "tinker_recovery.json"}


@pytest.mark.parametrize(
    ("status", "said", "error", "why"),
    [
        (401, "Invalid username or password.", ExportRefused, "refuses the token (HTTP 401)"),
        (403, "no write access", ExportRefused, "may not write to me/sft (HTTP 403)"),
        (402, "payment", ExportUnavailable, "no room for me/sft (HTTP 402, quota)"),
        (403, "Private storage limit reached", ExportUnavailable, "(HTTP 403, quota)"),
        (418, "teapot", ExportRefused, "refuses me/sft (HTTP 418)"),
        (429, "slow down", ExportUnavailable, "not available (HTTP 429)"),
    ],
)
async def test_what_the_hub_refuses_is_said_clearly(
    hub: LocalHub, tmp_path: Path, status: int, said: str, error: Any, why: str
) -> None:
    hub.fail(status, said, times=99, path="/api/")
    with pytest.raises(error) as raised:
        await publish(tmp_path / "a", exported(tmp_path / "a"), "me/sft")
    assert why in str(raised.value)
    hub.release()
    await publish(tmp_path / "a", exported(tmp_path / "a"), "me/sft")


@pytest.mark.parametrize(
    ("at", "refusal"),
    pairs(
        ["repos/create", "preupload", "objects/batch", "/lfs/", "/commit/"],
        [
            (
                507,
                "Insufficient Storage",
                ExportUnavailable,
                "no room for me/sft (HTTP 507, quota)",
            ),
            (
                403,
                "storage quota exceeded",
                ExportUnavailable,
                "no room for me/sft (HTTP 403, quota)",
            ),
            (401, "token expired", ExportRefused, "refuses the token (HTTP 401)"),
        ],
        8,
    ),
)
async def test_a_hub_that_fails_within_an_upload_is_said_to_and_holds_nothing_half(
    hub: LocalHub, tmp_path: Path, at: str, refusal: tuple[int, str, Any, str]
) -> None:
    status, said, error, why = refusal
    hub.fail(status, said, times=99, path=at)
    with pytest.raises(error) as raised:
        await publish(tmp_path / "a", exported(tmp_path / "a"), "me/sft")
    assert why in str(raised.value)
    assert all(not each.commits for each in hub.repositories.values())
    hub.release()
    done = await publish(tmp_path / "a", exported(tmp_path / "a"), "me/sft")
    assert done.commit is not None


async def test_a_hub_that_is_down_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdefghij")
    with pytest.raises(ExportUnavailable, match=r"hub at http://127\.0\.0\.1:9 is out of reach"):
        await publish(tmp_path / "a", exported(tmp_path / "a"), "me/sft")


async def test_an_upload_that_hangs_is_ended_at_its_deadline(hub: LocalHub, tmp_path: Path) -> None:
    hub.fail(0, delay_s=60.0, path="repos/create")
    with pytest.raises(ExportUnavailable, match="took longer than 3 s"):
        await publish(tmp_path / "a", exported(tmp_path / "a"), "me/sft", deadline_s=3.0)


async def test_the_token_is_in_no_error_and_no_log(
    hub: LocalHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.fail(418, f"quoting {hub.token}", times=99)
    with pytest.raises(ExportRefused) as raised:
        await publish(tmp_path / "a", exported(tmp_path / "a"), "me/sft")
    assert hub.token not in str(raised.value)
    assert "***" in str(raised.value)
    assert hub.token not in caplog.text
    assert hub.token not in "".join(capfd.readouterr())
    held = [each.read_bytes() for each in (tmp_path / "a").iterdir()]
    assert hub.token.encode() not in b"".join(held)


def test_what_comes_from_elsewhere_is_text_in_the_card(tmp_path: Path) -> None:
    hostile = replace(
        FACTS, run="<script>alert(1)</script> | `x`\n# [a](http://b)", base_model="no model: x\n---"
    )
    card = model_card(exported(tmp_path / "a", hostile))
    assert "<script>" not in card
    assert "\n# [a]" not in card
    assert card.count("---\n") == 2
    assert "base_model" not in card.partition("---\n\n")[0]


async def test_a_readme_in_the_folder_stays_and_a_missing_file_is_not_left_out(
    hub: LocalHub, tmp_path: Path
) -> None:
    manifest = exported(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("the user's own")
    await publish(tmp_path / "a", manifest, "me/sft")
    assert (tmp_path / "a" / "README.md").read_text() == "the user's own"
    (one,) = hub.repositories["me/sft"].commits
    assert b"LoRA adapter of run" in one.files["README.md"]
    await anyio.Path(tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises((ExportUnavailable, ExportRefused)):
        await publish(tmp_path / "a", manifest, "me/other")
    assert not hub.repositories["me/other"].commits


async def test_what_a_repository_holds_is_read_by_the_http_client_of_the_library_whichever_it_has(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its version 1.0, which transformers 4 needs, that is requests."""
    requests = pytest.importorskip("requests")
    manifest = exported(tmp_path / "a")
    await publish(tmp_path / "a", manifest, "me/sft")
    api = SimpleNamespace(endpoint=hub.environment["HF_ENDPOINT"])
    for session in (huggingface_hub.get_session(), requests.Session()):
        monkeypatch.setattr(huggingface_hub, "get_session", lambda session=session: session)
        assert await anyio.to_thread.run_sync(_held, api, "me/sft") == manifest
        assert await anyio.to_thread.run_sync(_held, api, "me/nothing") is None
        session.close()


@pytest.mark.parametrize("said", [{"visibility": "private"}, {"private": True}])
async def test_a_repository_of_the_test_kit_is_private_by_the_word_of_each_version_of_the_library(
    hub: LocalHub, said: dict[str, Any]
) -> None:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {hub.token}"}) as http:
        url = f"{hub.endpoint}/api/repos/create"
        (
            await http.post(url, json={"name": "sft", "organization": "me", **said})
        ).raise_for_status()
        await http.post(url, json={"name": "open", "organization": "me"})
    assert (hub.repositories["me/sft"].private, hub.repositories["me/open"].private) == (
        True,
        False,
    )
