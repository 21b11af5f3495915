"""The model card of a published adapter: what it is, and of which checkpoint."""

from __future__ import annotations

import html
import json
import re

from tinker_recovery.export.manifest import Manifest

_MODEL = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(manifest: Manifest) -> str:
    """The text of the card; what comes from elsewhere stands in it as the text it is."""
    of = manifest.checkpoint
    front = ["library_name: peft", "tags: [lora, tinker, tinker-recovery]"]
    if of.base_model and _MODEL.fullmatch(of.base_model):
        front.insert(0, f"base_model: {json.dumps(of.base_model)}")
    rows = {
        "Base model": of.base_model,
        "Run": of.run,
        "Lineage": of.lineage or None,
        "Step": of.step,
        **{f"Metric {name}": f"{value:.6g}" for name, value in sorted(of.metrics.items())},
        "Recoveries": of.recoveries,
        "Tinker path": of.path,
        "Format": manifest.format,
        "Digest": manifest.digest,
    }
    table = "\n".join(
        f"| {_text(name)} | <code>{_text(str(value))}</code> |"
        for name, value in rows.items()
        if value is not None
    )
    load = (
        "Load it with `llama-cli --lora adapter.gguf`."
        if manifest.format == "gguf"
        else "Load it with `peft.PeftModel.from_pretrained(base_model, this_repository)`."
    )
    title = f"LoRA adapter of run {_text(of.run)}"
    return (
        "---\n" + "\n".join(front) + f"\n---\n\n# {title}\n\n"
        "Trained over the Tinker API, and exported by tinker_recovery. Each commit is one "
        f"checkpoint.\n\n| | |\n|---|---|\n{table}\n\n{load}\n"
    )


def _text(text: str) -> str:
    """Text of others in a table of Markdown: neither markup nor another cell."""
    plain = html.escape(" ".join(text.split()))
    return re.sub(r"[|`*_\[\]\\~#]", lambda found: f"&#{ord(found[0])};", plain)
