"""Prometheus metrics under vLLM's names, which dashboards, autoscalers and load generators read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ssruntime.results import DecodeStats

_SECONDS: Final = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
)
_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)


class ServerMetrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, model: str, *, running: Callable[[], float], waiting: Callable[[], float], kv_usage: Callable[[], float]) -> None:
        """Makes the metrics.

        Args:
            model: value of the label `model_name`.
            running: returns the number of requests that have a sequence.
            waiting: returns the number of requests that wait for one.
            kv_usage: returns the share of the KV cache in use, 0 to 1.
        """
        self._registry = CollectorRegistry()
        self._model = model
        for name, about, value in (
            ("num_requests_running", "Requests that have a sequence.", running),
            ("num_requests_waiting", "Requests that wait for a sequence.", waiting),
            ("kv_cache_usage_perc", "Share of the KV cache in use; 1 is all.", kv_usage),
        ):
            gauge = Gauge(f"vllm:{name}", about, ["model_name"], registry=self._registry)
            gauge.labels(model).set_function(value)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._prefix_queries = self._counter("prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache.")
        self._prefix_hits = self._counter("prefix_cache_hits", "Tokens whose KV was found there.")
        self._generated = self._counter("generation_tokens", "Generated tokens.")
        self._successes = Counter(
            "vllm:request_success", "Requests that ended with a text.", ["model_name", "finished_reason"], registry=self._registry
        )
        self._failures = Counter("sstool:request_failure", "Requests that failed.", ["model_name", "status"], registry=self._registry)
        self._drafts = self._counter("spec_decode_num_drafts", "Rounds that proposed a draft.")
        self._drafted = self._counter("spec_decode_num_draft_tokens", "Tokens that were proposed.")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Proposed tokens that were accepted.")
        self._at_position = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens by their position in the draft.",
            ["model_name", "position"],
            registry=self._registry,
        )
        by_source = ["model_name", "source", "position"]
        self._source_drafted = Counter(
            "sstool:draft_tokens", "Proposed tokens by their source and position.", by_source, registry=self._registry
        )
        self._source_accepted = Counter("sstool:accepted_tokens", "Accepted ones of these.", by_source, registry=self._registry)
        self._first = self._histogram("time_to_first_token_seconds", "From the request's arrival to its first token.")
        self._between = self._histogram("inter_token_latency_seconds", "Between two tokens; those of one pass share its time.")
        self._whole = self._histogram("e2e_request_latency_seconds", "From the request's arrival to its end.")
        self._prompt_sizes = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._sizes = self._histogram("request_generation_tokens", "Generated tokens of a request.", _TOKENS)

    def render(self) -> bytes:
        """Returns all metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def add_first_token(self, prompt_tokens: int, seconds: float) -> None:
        """Counts the tokens of a prompt, and records the time to the first generated token."""
        self._prompt_tokens.inc(prompt_tokens)
        self._first.observe(seconds)

    def count_tokens(self, tokens: int) -> None:
        """Counts generated tokens."""
        self._generated.inc(tokens)

    def add_tokens(self, tokens: int, seconds: float) -> None:
        """Records the inter-token latency of tokens from one pass, which share its time equally.

        Args:
            tokens: number of tokens.
            seconds: time since the tokens before them.
        """
        for _ in range(tokens):
            self._between.observe(seconds / tokens)

    def add_end(self, reason: str, prompt_tokens: int, tokens: int, seconds: float, stats: DecodeStats) -> None:
        """Records a request that has ended with a text.

        Args:
            reason: finish reason of the API.
            prompt_tokens: number of the prompt's tokens.
            tokens: number of generated tokens.
            seconds: time since the request's arrival.
            stats: its statistics.
        """
        self._successes.labels(self._model, reason).inc()
        self._prefix_queries.inc(prompt_tokens)
        self._prefix_hits.inc(stats.cached_tokens)
        self._prompt_sizes.observe(prompt_tokens)
        self._sizes.observe(tokens)
        self._whole.observe(seconds)
        self._add_acceptance(stats)

    def add_failure(self, status: int) -> None:
        """Records a request that failed with an HTTP status."""
        self._failures.labels(self._model, str(status)).inc()

    def _add_acceptance(self, stats: DecodeStats) -> None:
        for (sources, accepted), rounds in stats.outcomes.items():
            self._drafts.inc(rounds)
            self._drafted.inc(rounds * len(sources))
            self._accepted.inc(rounds * accepted)
            for position, source in enumerate(sources):
                self._source_drafted.labels(self._model, source, str(position)).inc(rounds)
                if position < accepted:
                    self._at_position.labels(self._model, str(position)).inc(rounds)
                    self._source_accepted.labels(self._model, source, str(position)).inc(rounds)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(f"vllm:{name}", about, ["model_name"], registry=self._registry).labels(self._model)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"vllm:{name}", about, ["model_name"], registry=self._registry, buckets=buckets).labels(self._model)
