"""The parameters that both endpoints for completions take, and what they mean for the engine."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from ssruntime.config import GenerationConfig
from ssruntime.config.generation import SEED_LIMIT
from ssruntime.errors import ConfigError

MAX_CHOICES: Final = 128
MAX_STOPS: Final = 16
MAX_STOP_TOKENS: Final = 256
MAX_STOP_LENGTH: Final = 1000


StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
UsageIn = Literal["none", "last", "all"]


class RequestModel(BaseModel):
    """A part of a request; whatever it does not name is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Only:
    """Marks a parameter of OpenAI's API of which only some values can be followed."""

    def __init__(self, *values: object) -> None:
        """Takes these values, as parsed JSON."""
        self._values = values

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": list(self._values)}

    def _checked(self, value: object) -> object:
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self._values):
            raise ValueError(f"this server supports only {' or '.join(json.dumps(known) for known in self._values)}")
        return value


class StreamOptions(RequestModel):
    """What a stream has beside its chunks."""

    include_usage: bool = False
    continuous_usage_stats: bool = Field(False, description="Whether each chunk has the usage so far; needs include_usage.")


class DecodingRequest(RequestModel):
    """The parameters that both endpoints share. A parameter that is absent is taken from the checkpoint.

    OpenAI's parameters whose neutral value is the only one that can be followed accept that value.
    """

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-SEED_LIMIT, lt=SEED_LIMIT)
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=256, description="Written to the access log.")

    top_k: int | None = Field(None, ge=-1, description="0 and -1 keep all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    min_tokens: int | None = Field(None, ge=0)
    stop_token_ids: Annotated[list[int], Field(fail_fast=True)] | None = Field(None, max_length=MAX_STOP_TOKENS)
    ignore_eos: bool = False
    skip_special_tokens: bool = True

    frequency_penalty: Annotated[Any, Only(0, None)] = None
    presence_penalty: Annotated[Any, Only(0, None)] = None
    logit_bias: Annotated[Any, Only({}, None)] = None

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def choices(self) -> int:
        """Number of completions of each prompt."""
        return self.n or 1

    @property
    def usage_in(self) -> UsageIn:
        """Which chunks of a stream have the usage."""
        options = self.stream_options or StreamOptions(include_usage=False, continuous_usage_stats=False)
        if not options.include_usage:
            return "none"
        return "all" if options.continuous_usage_stats else "last"

    def generation_config(self, *, max_new_tokens: int, logprobs: int | None) -> GenerationConfig:
        """Returns the engine's settings.

        Args:
            max_new_tokens: most tokens of a completion.
            logprobs: number of most probable tokens to report beside each token; None to report nothing.

        Raises:
            ConfigError: if a value is out of the engine's range, or `min_tokens` is more than the limit.
        """
        if self.min_tokens is not None and self.min_tokens > max_new_tokens:  # in the API's own terms
            raise ConfigError(
                f"min_tokens {self.min_tokens} is more than max_tokens {max_new_tokens}", "raise max_tokens, or lower min_tokens"
            )
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            min_new_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            seed=None if self.seed is None else self.seed % SEED_LIMIT,
            logprobs=logprobs,
            stop=tuple(stops),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
        )
