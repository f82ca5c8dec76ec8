"""JSON that is written while a completion grows: large answers then take no long step at their end."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel
from pydantic_core import to_json

_ABSENT: Final = b'"logprobs":null'


class GrowingJson:
    """The JSON of an object whose lists come in parts, each of which is written at once.

    The event loop does other work between the parts, and JSON takes a fraction of the memory of its objects.
    """

    def __init__(self) -> None:
        self._lists: dict[str, list[bytes]] = {}
        self._others: dict[str, bytes] = {}

    def add(self, part: BaseModel) -> None:
        """Adds the lists of a part to those of the parts before it."""
        for name, value in part:
            if not isinstance(value, list):
                self._others[name] = _json(value)
                continue
            written = self._lists.setdefault(name, [])
            if value:
                written.append(_json(value)[1:-1])

    def json(self) -> bytes:
        """Returns the whole object; `null` if it has no part."""
        if not self._lists:
            return b"null"
        lists = (to_json(name) + b":[" + b",".join(parts) + b"]" for name, parts in self._lists.items())
        others = (to_json(name) + b":" + value for name, value in self._others.items())
        return b"{" + b",".join((*lists, *others)) + b"}"


def with_logprobs(answer: BaseModel, logprobs: list[GrowingJson]) -> bytes:
    """Returns the JSON of an answer with log probabilities in its choices, which have none yet."""
    # Quotes within a JSON text are escaped, so this is the key of each choice and nothing else.
    first, *others = answer.model_dump_json().encode().split(_ABSENT)
    assert len(others) == len(logprobs)
    return b"".join([first, *(b'"logprobs":' + one.json() + after for one, after in zip(logprobs, others, strict=True))])


def _json(value: object) -> bytes:
    return to_json(value, inf_nan_mode="null")
