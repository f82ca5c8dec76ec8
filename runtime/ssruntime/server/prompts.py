"""Turns the messages of a request into the chat that the model's template gets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ssruntime.server.errors import ApiError
from ssruntime.server.schema.chat import ChatMessage, Tool
from ssruntime.text.prompt import Chat

MAX_NESTING: Final = 32
"""Deepest nesting of what a template may write with indentation, which grows with the depth."""


def as_chat(
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[Tool] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Chat:
    """Returns the chat of a request.

    Args:
        messages: its turns.
        tools: tools that the model may call.
        documents: documents for the template.
        variables: further variables of the template.

    Raises:
        ApiError: if the arguments of an earlier call of a tool are not a JSON object, or a value is too deep.
        PromptError: if a turn has no content, or a variable has the name of another part.
    """
    functions = [tool.model_dump() for tool in tools or ()]
    for name, value in (("tools", functions), ("documents", documents), ("chat_template_kwargs", variables)):
        if _is_deeper(value, MAX_NESTING):
            raise ApiError(400, f"{name}: values are nested more than {MAX_NESTING} deep", param=name, code="invalid_value")
    return Chat(
        messages=[_message(message, f"messages.{index}") for index, message in enumerate(messages)],
        tools=functions or None,
        documents=list(documents) if documents else None,
        variables=variables or {},
    )


def _is_deeper(value: object, most: int) -> bool:
    """Returns whether lists and objects are nested more than so deep; JSON as parsed, which has no cycles."""
    level: list[object] = [value]
    for _ in range(most + 1):
        level = [one for outer in level for one in _parts(outer)]
        if not level:
            return False
    return True


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _message(message: ChatMessage, where: str) -> dict[str, object]:
    """Returns a turn in the form that templates read: text content, parsed arguments, no absent values."""
    found = message.model_dump(exclude_none=True)
    # Templates of open models know the older name of this role.
    found["role"] = "system" if message.role == "developer" else message.role
    if isinstance(message.content, list):
        found["content"] = "".join(part.text for part in message.content)
    for index, call in enumerate(found.get("tool_calls", ())):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"], f"{where}.tool_calls.{index}.function.arguments")
    return found


def _arguments(text: str, where: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, f"{where}: expected a JSON object in a string", param=where, code="invalid_value")
    return arguments
