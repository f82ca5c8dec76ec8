"""The tokenizer of a checkpoint as transformers reads it, which is the reference for the artifact's own.

Several files define a tokenizer, and they may disagree: `tokenizer.json`, `tokenizer_config.json`,
`added_tokens.json`, `special_tokens_map.json`. The runtime reads `tokenizer.json` only, so what the others
change must be written into it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sstool.checkpoint.quiet import quiet

logger = logging.getLogger(__name__)

_TEXTS: Final = (
    "Hello, world!",
    "  leading spaces, then\ttabs and\n\n\nnew lines \n ",
    "It's 1234567890 o'clock; they'll say don't, aren't, I'VE.",
    "def area(radius: float) -> float:\n    return 3.14 * radius ** 2  # 12 %",
    "naïve café, Übergröße, 日本語と中文, русский, العربية, हिन्दी",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 \ufb01 \u2460 \u00a0 \u2028",
    "a",
    " ",
)
_MOST_TOKENS: Final = 400
"""Most added tokens that are probed; some tokenizers have thousands of reserved ones, all of one kind."""
_USER: Final = {"role": "user", "content": "What is 2 + 2?"}
_CHATS: Final[tuple[tuple[Mapping[str, str], ...], ...]] = (
    (_USER,),
    ({"role": "system", "content": "Answer briefly."}, _USER),
    (_USER, {"role": "assistant", "content": "4"}, {"role": "user", "content": "And 3 + 3?"}),
)


class ReferenceTokenizer:
    """The tokenizer that transformers makes of all files of a checkpoint."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def to_json(self) -> str:
        """Returns the content of a `tokenizer.json` that holds the whole tokenizer."""
        content: str = self._tokenizer.backend_tokenizer.to_str(pretty=True)
        return content

    @property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the special tokens by name (`bos_token`, `eos_token`, ...)."""
        return {name: str(token) for name, token in self._tokenizer.special_tokens_map.items() if isinstance(token, str)}

    @property
    def chat_template(self) -> str | None:
        """Jinja2 source of the template for chats; None if there is none."""
        template = self._tokenizer.chat_template
        if isinstance(template, dict):  # several named templates: the one called "default" is meant for chats
            template = template.get("default")
        return template if isinstance(template, str) else None

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, with the special tokens that the tokenizer adds."""
        with quiet():
            return [int(i) for i in self._tokenizer(text).input_ids]

    def probes(self) -> Iterator[str]:
        """Yields texts that tell tokenizers apart: of several scripts, and with each added token."""
        yield from _TEXTS
        tokens = [str(token) for token in self._tokenizer.get_added_vocab()]
        for token in tokens[:_MOST_TOKENS]:
            yield token
            yield f"a {token} b{token}c"
        yield "x".join(tokens[:_MOST_TOKENS])

    def chats(self) -> Iterator[tuple[Sequence[Mapping[str, str]], str]]:
        """Yields conversations that the chat template accepts, each with its text."""
        for messages in _CHATS:
            try:
                with quiet():
                    text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            except Exception:  # noqa: BLE001 - templates raise what they like; such messages are not for this model
                continue
            yield messages, str(text)


def reference_tokenizer(folder: Path) -> ReferenceTokenizer | None:
    """Returns the tokenizer that transformers makes of a checkpoint; None, with a warning, if it cannot."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, use_fast=True)
            has_backend = hasattr(tokenizer, "backend_tokenizer")
    except Exception as err:  # noqa: BLE001 - any exception of the tokenizer's own code
        reason = " ".join(str(err).split())[:200]
        logger.warning("transformers cannot read the tokenizer, so tokenizer.json is used as it is: %s", reason)
        return None
    if not has_backend:
        logger.warning("transformers reads the tokenizer with Python code of its own, so tokenizer.json is used as it is")
        return None
    return ReferenceTokenizer(tokenizer)
