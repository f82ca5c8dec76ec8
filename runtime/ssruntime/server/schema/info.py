"""The bodies about the server itself and its tokenizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from ssruntime.server.schema.chat import ChatMessage, Tool
from ssruntime.server.schema.decoding import RequestModel


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sstool"
    max_model_len: int


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Status(BaseModel):
    """Whether the server takes requests."""

    status: Literal["ready"] = "ready"


class Version(BaseModel):
    """What runs."""

    version: str


class TokenizeRequest(RequestModel):
    """A text or a chat to turn into tokens."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = Field(None, min_length=1)
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if (self.prompt is None) is (self.messages is None):
            raise ValueError("give one of prompt and messages")
        return self


class TokenizeResponse(BaseModel):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestModel):
    """Tokens to turn into a text."""

    model: str | None = None
    tokens: Annotated[list[int], Field(fail_fast=True)]


class DetokenizeResponse(BaseModel):
    """The text of tokens."""

    prompt: str
