"""The kinds of prompts; a chat is the messages and what else its template is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ssruntime.errors import PromptError

Message = Mapping[str, object]
"""A message of a chat: its `role`, and its `content` or what the template reads instead, such as
`tool_calls`."""

_MESSAGE = 'a message is an object like {"role": "user", "content": "..."}'
_OWN_NAMES = ("messages", "tools", "documents")


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation that the model continues with the assistant's next turn.

    Attributes:
        messages: the turns so far, at least one; a system prompt is the first.
        tools: JSON schemas of the functions that the model may call; None for none.
        documents: documents that the model may quote, as the template reads them; None for none.
        variables: further variables of the template, such as `enable_thinking`.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, object]] | None = None
    documents: Sequence[Mapping[str, object]] | None = None
    variables: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks that the values have the right kinds.

        Raises:
            PromptError: if there is no message, a message has no role, or a value is of another kind.
        """
        _check_objects("messages", self.messages)
        if not self.messages:
            raise PromptError("the chat has no messages", _MESSAGE)
        for index, message in enumerate(self.messages):
            if not isinstance(message.get("role"), str) or not message.keys() - {"role"}:
                raise PromptError(f"message {index} lacks a role or content: {dict(message)!r}", _MESSAGE)
        for name in ("tools", "documents"):
            if getattr(self, name) is not None:
                _check_objects(name, getattr(self, name))
        variables: object = self.variables
        if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
            raise PromptError(f"variables must be an object, found {variables!r}", 'give names and values, as {"enable_thinking": false}')
        for name in _OWN_NAMES:
            if name in variables:
                raise PromptError(f"{name} cannot be a variable of the template", f"give them as the {name} of the chat")


Prompt = str | Sequence[int] | Sequence[Message] | Chat | NDArray[Any]
"""A prompt: text, token ids (a sequence, an array or a tensor), chat messages, or a chat with its options."""


def _check_objects(name: str, value: object) -> None:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence) or not all(isinstance(v, Mapping) for v in value):
        raise PromptError(
            f"{name} must be a list of objects, found {value!r}", _MESSAGE if name == "messages" else "give a list of objects"
        )
