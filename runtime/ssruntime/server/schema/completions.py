"""`/v1/completions`: its request, response and chunks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from ssruntime.config.generation import MAX_LOGPROBS
from ssruntime.server.schema.answer import Answer
from ssruntime.server.schema.decoding import DecodingRequest, Only

Tokens = Annotated[list[int], Field(fail_fast=True)]


class CompletionRequest(DecodingRequest):
    """A request to continue texts."""

    prompt: str | Annotated[list[str], Field(fail_fast=True)] | Tokens | Annotated[list[Tokens], Field(fail_fast=True)]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1)
    echo: Annotated[Any, Only(False, None)] = None
    suffix: Annotated[Any, Only(None)] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.best_of is not None and self.best_of != self.choices:
            raise ValueError(f"best_of must equal n: this server returns every completion; found {self.best_of} and {self.choices}")
        return self

    @property
    def prompts(self) -> list[str | Tokens]:
        """The prompts, one or more; empty if the list is."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)  # type: ignore[arg-type]


class CompletionLogprobs(BaseModel):
    """Log probabilities; the lists have an entry for each token, and `top_logprobs` also the token itself."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """A completion, or a piece of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class CompletionResponse(Answer):
    """A response, or a chunk of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
