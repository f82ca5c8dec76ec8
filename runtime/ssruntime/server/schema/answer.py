"""What all answers have: their head, what the request used, and how well its drafts were accepted."""

from __future__ import annotations

from typing import Any, Final, TypedDict

from pydantic import BaseModel, Field

ABSENT: Final[Any] = Field(None, exclude_if=lambda value: value is None)
"""Default of a field that a response leaves out instead of having null in it."""


class AnswerHead(TypedDict):
    """What every answer to a request and every chunk of a stream begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class PromptTokensDetails(BaseModel):
    """Parts of the prompt."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Numbers of tokens, of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = ABSENT


class SpeculativeDecoding(BaseModel):
    """How well drafts were accepted; the names are vLLM's."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]
    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int


class Metrics(BaseModel):
    """Figures beside the usage."""

    speculative_decoding: SpeculativeDecoding | None = ABSENT


class Answer(BaseModel):
    """A response, or a chunk of a stream; its subclasses have the choices."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = ABSENT
    metrics: Metrics | None = ABSENT
