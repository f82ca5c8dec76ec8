"""Makes the bodies of requests from prompts, for one of two endpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ssruntime.errors import PromptError
from ssruntime.sampling.noise import prompt_seed
from ssruntime.text.prompt import Chat
from sstool.bench_serve.options import Endpoint, ServeBenchOptions
from sstool.prompts import PromptRecord

PATHS: Final[dict[Endpoint, str]] = {"completions": "/completions", "chat": "/chat/completions"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestPlan:
    """The requests of a run.

    Attributes:
        endpoint: the endpoint that they go to.
        records: the prompts, at least one.
        options: how requests are made.
        model: name of the model.
    """

    endpoint: Endpoint
    records: Sequence[PromptRecord]
    options: ServeBenchOptions
    model: str

    @property
    def num_requests(self) -> int:
        """The number of requests of a run."""
        return len(self.records) if self.options.requests is None else self.options.requests

    def record(self, index: int) -> PromptRecord:
        """Returns the prompt of a request; prompts repeat in their order."""
        return self.records[index % len(self.records)]

    def body(self, index: int) -> bytes:
        """Returns the body of a request as JSON in UTF-8.

        What the user has not set is left to the server. The seed is that of prompt `index` in a file, so that
        a repeated prompt gets another one.
        """
        options = self.options
        body: dict[str, Any] = {
            "model": self.model,
            **_content(self.record(index), self.endpoint),
            "max_tokens": options.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        optional = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": None if options.seed is None else prompt_seed(options.seed, index),
            "ignore_eos": options.ignore_eos or None,
        }
        return json.dumps(body | {k: v for k, v in optional.items() if v is not None}).encode()


def choose_endpoint(records: Sequence[PromptRecord], endpoint: Endpoint | None) -> Endpoint:
    """Returns the endpoint for these prompts: the given one, else `chat` for chats, `completions` for texts.

    Raises:
        PromptError: if a prompt cannot go to the endpoint, or some prompts are chats and none is given.
    """
    chats = [isinstance(record.prompt, Chat) for record in records]
    if endpoint is None and any(chats) and not all(chats):
        raise PromptError("some prompts are chats and some are texts", "pass --endpoint chat to send each text as a user message")
    chosen: Endpoint = endpoint or ("chat" if any(chats) else "completions")
    for record in records:
        _content(record, chosen)
    return chosen


def _content(record: PromptRecord, endpoint: Endpoint) -> dict[str, Any]:
    """Returns the entries of a body that hold the prompt."""
    prompt = record.prompt
    if endpoint == "completions":
        if isinstance(prompt, Chat):
            raise PromptError(f"prompt {record.id} is a chat", "pass --endpoint chat, or prompts without messages")
        return {"prompt": prompt if isinstance(prompt, str) else list(prompt)}
    if isinstance(prompt, str):
        return {"messages": [{"role": "user", "content": prompt}]}
    if not isinstance(prompt, Chat):
        raise PromptError(f"prompt {record.id} is token ids, which a chat cannot hold", "pass --endpoint completions")
    # The last two are extensions that vLLM and llama.cpp's server read.
    given = {"tools": prompt.tools, "documents": prompt.documents, "chat_template_kwargs": dict(prompt.variables) or None}
    return {"messages": list(prompt.messages)} | {name: value for name, value in given.items() if value is not None}
