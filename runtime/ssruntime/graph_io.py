"""The graph contract: names and limits that the exporter writes into a graph and the runtime binds by.

Every engine of an ONNX Runtime target takes and gives, with B = 1 for now:

| name | dtype, shape | meaning |
|---|---|---|
| `input_ids` | int64[B, S] | new tokens |
| `seqlens_k` | int32[B] | valid tokens after this step, minus 1 |
| `total_sequence_length` | int32[] | largest of (`seqlens_k` + 1) |
| `position_ids` | int64[B, S] | where each new token stands in the text |
| `past_length` | int64[1] | verify only: tokens cached before the new ones |
| `tree_mask` | float[1, 1, S, S] | verify only: `HIDDEN` where a new token must not see another one before it, else 0 |
| `logits_index` | int64[B, N] | which of the S positions reach the LM head |
| `past.{layer}.key`, `.value` | float[B, kv_heads, max_context, head_dim] | cache, bound once as input and output |
| `present.{layer}.key`, `.value` | the same | the same buffers |
| `token` | int64[B, N] | most probable token after each chosen position |
| `confidence` | float32[B, N] | its probability at temperature 1 |
| `top_tokens` | int64[B, N, num_top] | the most probable tokens, best first, ties by lower id |
| `top_logits` | float32[B, N, num_top] | their logits |
| `logits` | float32[B, N, vocab] | for sampling, where the best tokens do not settle it |

`num_top` is `MAX_TOP_TOKENS`, or the vocabulary where that is smaller.
`layer` is the layer's number in the checkpoint; a draft has the caches of its kept attention sublayers only.
"""

from __future__ import annotations

from typing import Final

INPUT_IDS: Final = "input_ids"
SEQLENS_K: Final = "seqlens_k"
TOTAL_SEQUENCE_LENGTH: Final = "total_sequence_length"
POSITION_IDS: Final = "position_ids"
PAST_LENGTH: Final = "past_length"
TREE_MASK: Final = "tree_mask"
LOGITS_INDEX: Final = "logits_index"
TOKEN: Final = "token"
CONFIDENCE: Final = "confidence"
TOP_TOKENS: Final = "top_tokens"
TOP_LOGITS: Final = "top_logits"
LOGITS: Final = "logits"

PAST_PREFIX: Final = "past."
PRESENT_PREFIX: Final = "present."

MAX_TOP_TOKENS: Final = 64
"""Most tokens that `top_tokens` names: more than nearly every nucleus holds, and few enough to be found as fast as the best one."""

MAX_QUERY_LENGTH: Final = 16
"""Most tokens one verify pass takes: the last committed one, up to 15 drafted ones, and alternatives as far as there is room."""

HIDDEN: Final = -1e9
"""Bias of what a token must not see: its weight underflows to 0."""


def past_name(layer: int, kind: str) -> str:
    """Returns the input name of a layer's cache; `kind` is `key` or `value`."""
    return f"{PAST_PREFIX}{layer}.{kind}"


def present_name(layer: int, kind: str) -> str:
    """Returns the output name of a layer's cache; `kind` is `key` or `value`."""
    return f"{PRESENT_PREFIX}{layer}.{kind}"
