"""A tokenizer of the small model's vocabulary, which needs no network."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path

from tinker_recovery.testing._sampling import END

_SYMBOLS = string.ascii_lowercase + string.digits + " \n.,:;!?'\"()[]{}<>+-*/=_#@&"
_IDS = {symbol: token for token, symbol in enumerate(_SYMBOLS)}

_END_TEXT = "<end>"
_FILES: dict[str, dict[str, object]] = {
    "config.json": {},
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END_TEXT,
        "clean_up_tokenization_spaces": False,
    },
    "tokenizer.json": {
        "added_tokens": [
            {
                "id": END,
                "content": _END_TEXT,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {**_IDS, _END_TEXT: END}, "unk_token": "?"},
    },
}
"""The same tokenizer, in the format of Hugging Face's transformers."""

_REVISION = "0" * 40


class LocalTokenizer:
    """One token for each character: 63 characters, and the token that ends a text.

    Capitals become small letters, and other unknown characters ``?``. Tokens are taken modulo the
    vocabulary, as the model takes them.
    """

    eos_token_id = END
    vocab_size = END + 1

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The tokens of a text; with ``add_special_tokens``, the one that ends it too."""
        tokens = [_IDS.get(symbol, _IDS["?"]) for symbol in text.lower()]
        return [*tokens, END] if add_special_tokens else tokens

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens; what ends it is left out, or ``<end>``."""
        end = "" if skip_special_tokens else _END_TEXT
        found = (token % self.vocab_size for token in tokens)
        return "".join(end if token == END else _SYMBOLS[token] for token in found)

    @staticmethod
    def write_cache(folder: Path, *models: str) -> dict[str, str]:
        """Let the SDK's ``get_tokenizer()`` find it, without a network, as that of these models.

        Whatever loads a tokenizer with Hugging Face's transformers finds it too. In a process of
        its own, or before the first tokenizer is loaded in this one::

            os.environ.update(LocalTokenizer.write_cache(folder, "Qwen/Qwen3-8B"))

        Args:
            folder: A cache of Hugging Face's that is made here, or added to: an empty folder, not
                the one with real models.
            models: Names as at Hugging Face's hub.

        Returns:
            The environment variables that make it the cache, and the only source.
        """
        for model in models:
            cached = folder / f"models--{model.replace('/', '--')}"
            snapshot = cached / "snapshots" / _REVISION
            (cached / "refs").mkdir(parents=True, exist_ok=True)
            snapshot.mkdir(parents=True, exist_ok=True)
            for name, content in _FILES.items():
                (snapshot / name).write_text(json.dumps(content))
            (cached / "refs" / "main").write_text(_REVISION)
        return {"HF_HUB_CACHE": str(folder), "HF_HUB_OFFLINE": "1"}
