"""Encoding of prompts (text, token ids or chat messages) with an artifact's tokenizer and chat template."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeGuard

import numpy as np
from tokenizers import Tokenizer

from ssruntime.artifact import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from ssruntime.errors import ArtifactError, ContextOverflowError, PromptError
from ssruntime.text.chat import MAX_RENDERED, ChatTemplate, read_special_tokens
from ssruntime.text.prompt import Chat, Prompt
from ssruntime.text.token_bytes import TokenBytes

_LONG: Final = 4000
"""Characters, or tokens, from which on the tokenizer works without Python's lock, so that other threads go
on. It then starts threads, of which a process that forks later is warned; short texts start none."""


class PromptCodec:
    """Encodes prompts as the checkpoint's own tokenizer does. Safe to use from several threads."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Reads the tokenizer, and the chat template if there is one.

        Raises:
            ArtifactError: if a file is missing or damaged.
        """
        path = folder / TOKENIZER
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as err:  # tokenizers raises plain Exception
            raise ArtifactError(f"{path} cannot be read: {err}", "export the model again") from err
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        added = self.tokenizer.get_added_tokens_decoder()
        self.special_tokens = {token: named.content for token, named in added.items() if named.special}
        """Text of the tokenizer's special tokens by id."""
        self.token_bytes = TokenBytes(self.tokenizer)
        self._vocab_size = vocab_size
        template, names = folder / CHAT_TEMPLATE, read_special_tokens(folder / TOKENIZER_CONFIG)
        turn_end = self.tokenizer.token_to_id(names["eos_token"]) if "eos_token" in names else None
        self.turn_end = frozenset(() if turn_end is None else (turn_end,))
        """The token that ends the assistant's turn in a chat, if the tokenizer names one."""
        self.chat: ChatTemplate | None = None
        if template.exists():
            try:
                source = template.read_text(encoding="utf-8")
            except (OSError, ValueError) as err:
                raise ArtifactError(f"{template} cannot be read: {err}", "export the model again") from err
            self.chat = ChatTemplate(source, names)

    def encode(self, prompt: Prompt, *, add_special_tokens: bool = True, context: int | None = None) -> list[int]:
        """Returns the token ids of a prompt, at least one.

        The tokenizer adds its special tokens to a text, but not to rendered messages, because chat templates
        write them.

        Args:
            prompt: the prompt.
            add_special_tokens: whether the tokenizer adds its special tokens to a text.
            context: number of tokens that a prompt and one more must fit into; None sets no limit.

        Raises:
            PromptError: if the prompt is empty or of an unknown kind, an id is outside the vocabulary, the
                chat template is missing, or it refuses the messages.
            ContextOverflowError: if the prompt is too long.
        """
        chat = as_chat(prompt)
        if chat is not None:
            most = MAX_RENDERED if context is None else self.token_bytes.most_characters(context)
            ids = self._encode_text(self.render(chat, most), special=False, context=context)
        elif isinstance(prompt, str):
            if not prompt:
                raise PromptError("the prompt is empty", "give at least one character")
            ids = self._encode_text(prompt, special=add_special_tokens, context=context)
        else:
            given = _token_ids(prompt)
            _check_length(len(given), context)
            ids = self._checked_ids(given)
        if not ids:
            raise PromptError("the prompt is empty", "give at least one token")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, special tokens included.

        Raises:
            PromptError: if an id is not one of this model.
        """
        known = self._checked_ids(ids)
        if len(known) < _LONG:
            text: str = self.tokenizer.decode(known, skip_special_tokens=False)
        else:
            (text,) = self.tokenizer.decode_batch([known], skip_special_tokens=False)
        return text

    def render(self, chat: Chat, most: int = MAX_RENDERED) -> str:
        """Returns the text of a chat, as the model's chat template writes it.

        Args:
            chat: the chat.
            most: most characters of the text.

        Raises:
            PromptError: if the model has no chat template, or the template refuses the chat.
            ContextOverflowError: if the text becomes longer.
        """
        if self.chat is None:
            raise PromptError("this model has no chat template", "give the prompt as plain text")
        return self.chat.render(chat, most)

    def _encode_text(self, text: str, *, special: bool, context: int | None) -> list[int]:
        if context is not None and len(text) > self.token_bytes.most_characters(context):
            raise ContextOverflowError(
                f"the prompt has {len(text)} characters, more than a context of {context} tokens can hold", "shorten the prompt"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as err:
            raise PromptError(f"the prompt is not valid Unicode: {err.reason} at character {err.start}", "remove lone surrogates") from err
        if len(text) < _LONG:
            encoded = self.tokenizer.encode(text, add_special_tokens=special)
        else:
            (encoded,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=special)
        _check_length(len(encoded), context)
        ids: list[int] = encoded.ids
        return self._checked_ids(ids) if max(ids, default=0) >= self._vocab_size else ids

    def _checked_ids(self, ids: Sequence[object]) -> list[int]:
        checked: list[int] = []
        for item in ids:
            try:
                token = -1 if isinstance(item, bool) else operator.index(item)  # type: ignore[arg-type]  # raises if it is no integer
            except TypeError:
                token = -1
            if not 0 <= token < self._vocab_size:
                raise PromptError(f"{item!r} is not a token id of this model", f"token ids are 0 to {self._vocab_size - 1}")
            checked.append(token)
        return checked


def _check_length(tokens: int, context: int | None) -> None:
    if context is not None and tokens >= context:
        raise ContextOverflowError(
            f"the prompt has {tokens} tokens, and the context of {context} tokens must hold at least one more", "shorten the prompt"
        )


def as_chat(prompt: Prompt) -> Chat | None:
    """Returns the chat if a prompt is one, or a list of chat messages; else None.

    Raises:
        PromptError: if a message has no role or no content.
    """
    if isinstance(prompt, Chat):
        return prompt
    if _is_list_like(prompt) and len(prompt) > 0 and all(isinstance(item, Mapping) for item in prompt):
        return Chat(messages=[item for item in prompt if isinstance(item, Mapping)])
    return None


def _token_ids(prompt: object) -> Sequence[object]:
    """Returns the items of a sequence, or of an array or tensor of one row."""
    to_list = getattr(prompt, "tolist", None)  # numpy, torch and others
    if to_list is not None and not isinstance(prompt, memoryview):
        rows = np.asarray(to_list(), dtype=object)
        if rows.ndim > 1 and rows.shape[:-1] != (1,) * (rows.ndim - 1):
            raise PromptError(f"an array of the shape {rows.shape} is not one prompt", "give the token ids of one prompt at a time")
        return list(rows.reshape(-1))
    if not _is_list_like(prompt):
        raise PromptError(f"a prompt of type {type(prompt).__name__} cannot be used", "give a text, token ids or chat messages")
    return prompt


def _is_list_like(prompt: object) -> TypeGuard[Sequence[object]]:
    # Bytes are sequences of integers, but are hardly ever meant as token ids.
    return isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes | bytearray | memoryview)
