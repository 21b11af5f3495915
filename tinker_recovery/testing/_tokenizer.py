"""A tokenizer of the small model's vocabulary, which needs no network."""

from __future__ import annotations

import string
from collections.abc import Sequence

from tinker_recovery.testing._sampling import END

_SYMBOLS = string.ascii_lowercase + string.digits + " \n.,:;!?'\"()[]{}<>+-*/=_#@&"
_IDS = {symbol: token for token, symbol in enumerate(_SYMBOLS)}


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
        end = "" if skip_special_tokens else "<end>"
        found = (token % self.vocab_size for token in tokens)
        return "".join(end if token == END else _SYMBOLS[token] for token in found)
