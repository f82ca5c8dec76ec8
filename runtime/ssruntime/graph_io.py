"""The graph contract: the names and limits that the exporter and the runtime share.

Every engine of an ONNX Runtime target has these inputs and outputs. B is the number of rows of a pass, one
for each sequence; S is the query length of a pass, and N the number of logits to keep. The rows of a pass may
have different query lengths: shorter ones are padded at their end to S.

There are three kinds of engines: `verify` runs token trees and prompts, `step` runs passes of one token of
the same model, and `draft` leaves sublayers out. In `step`, attention runs on two equal query rows for each
row of the pass, because ONNX Runtime's kernel for a single query row orders its sums differently: with two, a
token's logits have the same bits as in every wider pass. So the lengths that `step` is fed count one token
more than a row has, and the KV of the second query row is written to the entry after the token's own, where
the next pass overwrites it. A row of one token in a wider pass of `verify` counts its first padding token for
the same reason.

| name | dtype, shape | meaning |
|---|---|---|
| `input_ids` | int64[B, S] | new tokens |
| `query_seqlens` | int32[B] | new tokens of each row; the rest is padding. 0: the row takes no part |
| `seqlens_k` | int32[B] | valid tokens of each row after this pass, minus 1; at least 0 |
| `total_sequence_length` | int32[] | at least the largest of (`seqlens_k` + 1), and at most `capacity` |
| `position_ids` | int64[B, S] | position of each new token in its text |
| `rope.{name}.cos`, `.sin` | float[positions, pairs] | RoPE tables; at least `capacity` positions |
| `past_length` | int64[B] | verify only: number of tokens in the KV cache before the new ones |
| `tree_mask` | float[B, 1, S, S] | verify only: `HIDDEN` where a new token must not see an earlier one |
| `logits_index` | int64[B, N] | logits to keep: indices of the new tokens that reach the LM head |
| `past.{layer}.key`, `.value` | float[B, kv_heads, capacity, head_dim] | KV cache, bound once |
| `present.{layer}.key`, `.value` | the same | the buffers of `past`, written in place |
| `token` | int64[B, N] | most probable next token of each kept row |
| `confidence` | float32[B, N] | its probability at temperature 1 |
| `top_tokens` | int64[B, N, num_top] | the most probable next tokens, best first, ties by lower id |
| `top_logits` | float32[B, N, num_top] | their logits |
| `logits` | float32[B, N, vocab] | all logits, for sampling that the top tokens do not decide |

With several rows, every row needs room for S tokens after those in its KV cache; with `tree_mask`,
`total_sequence_length` must cover them too. `num_top` is the lesser of `MAX_TOP_TOKENS` and the vocabulary
size. `layer` is the layer's number in the checkpoint; a draft has a KV cache only for its kept attention
sublayers.
"""

from __future__ import annotations

from typing import Final

INPUT_IDS: Final = "input_ids"
QUERY_SEQLENS: Final = "query_seqlens"
SEQLENS_K: Final = "seqlens_k"
TOTAL_SEQUENCE_LENGTH: Final = "total_sequence_length"
POSITION_IDS: Final = "position_ids"
PAST_LENGTH: Final = "past_length"
TREE_MASK: Final = "tree_mask"
LOGITS_INDEX: Final = "logits_index"
WRITE_INDICES: Final = "write_indices"
"""Input int64[B] of standard graphs, in place of all lengths: the first new entry of each row."""
TOKEN: Final = "token"
CONFIDENCE: Final = "confidence"
TOP_TOKENS: Final = "top_tokens"
TOP_LOGITS: Final = "top_logits"
LOGITS: Final = "logits"

ROPE_PREFIX: Final = "rope."
PAST_PREFIX: Final = "past."
PRESENT_PREFIX: Final = "present."

MAX_TOP_TOKENS: Final = 64
"""Most tokens in `top_tokens`: almost every top-p set is smaller, and TopK of 64 is as fast as of 1."""

MAX_QUERY_LENGTH: Final = 16
"""Greatest query length of a verify pass: the last committed token, up to 15 draft tokens, and alternatives.

An alternative is a side branch of the token tree, one token long. Alternatives use the rows that are left."""

STEP_PADDING: Final = 1
"""Query rows that the step engine's attention adds to the only token of each row."""

MIN_QUERY_LENGTH: Final = 1 + STEP_PADDING
"""Fewest tokens that a row of `verify` may count, for its logits to have the same bits in any pass."""

HIDDEN: Final = -1e9
"""Attention bias of a token that must not be attended to: its softmax weight underflows to 0."""
HIDDEN_HALF: Final = -6e4
"""The same in fp16, whose largest number is 65,504."""


def hidden_score(dtype: str) -> float:
    """Returns the attention bias of a hidden token in a data type: `float16`, or one with a larger range."""
    return HIDDEN_HALF if dtype == "float16" else HIDDEN


def rope_names(name: str) -> tuple[str, str]:
    """Returns the input names of the cosines and the sines of a RoPE."""
    prefix = f"{ROPE_PREFIX}{name.replace(' ', '_')}"
    return f"{prefix}.cos", f"{prefix}.sin"


def past_name(layer: int, kind: str) -> str:
    """Returns the input name of a layer's KV cache; `kind` is `key` or `value`."""
    return f"{PAST_PREFIX}{layer}.{kind}"


def present_name(layer: int, kind: str) -> str:
    """Returns the output name of a layer's KV cache; `kind` is `key` or `value`."""
    return f"{PRESENT_PREFIX}{layer}.{kind}"
