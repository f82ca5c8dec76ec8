"""`/v1/chat/completions`: its request, response and chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ssruntime.config.generation import MAX_LOGPROBS
from ssruntime.server.schema.answer import ABSENT, Answer
from ssruntime.server.schema.decoding import DecodingRequest, Only, RequestModel


class TextPart(RequestModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class FunctionCall(RequestModel):
    """A call that an earlier turn of the assistant made."""

    name: str
    arguments: str = Field(description="A JSON object; the template gets it parsed.")


class ToolCall(RequestModel):
    """A call of a tool, in a turn of the assistant."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(RequestModel):
    """A turn of the conversation; the model's template says which roles there are."""

    role: str = Field(min_length=1)
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: Annotated[Any, Only(None)] = None


class ToolFunction(BaseModel):
    """A function that the model may call; the template gets all of it."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str


class Tool(RequestModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: ToolFunction


class ResponseFormat(RequestModel):
    """The form of the answer."""

    type: Annotated[Any, Only("text")]


class ChatRequest(DecodingRequest):
    """A request for the assistant's next turn."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Annotated[Any, Only("auto", "none", None)] = None
    parallel_tool_calls: Annotated[Any, Only(True, None)] = None
    response_format: ResponseFormat | None = None
    documents: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Further variables of the template.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        return self

    @property
    def logprob_count(self) -> int | None:
        """Number of most probable tokens to report beside each token; None to report nothing."""
        return self.top_logprobs or 0 if self.logprobs else None


# Dataclasses, because an answer may have a hundred thousand of them, and models take longer to make.
@dataclass(slots=True)
class TopLogprob:
    """A token and its log probability."""

    token: str
    logprob: float
    bytes: list[int]


@dataclass(slots=True)
class ChatTokenLogprob(TopLogprob):
    """A generated token, with the most probable ones of its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities of the generated tokens."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """A completion."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatResponse(Answer):
    """A response."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Delta(BaseModel):
    """What a chunk adds to the assistant's turn."""

    role: Literal["assistant"] | None = ABSENT
    content: str | None = ABSENT


class ChatChunkChoice(BaseModel):
    """A piece of a completion."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(Answer):
    """A chunk of a stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
