"""The passes in their order: from the graph mobius builds to the pair that an artifact ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime.artifact import SkipSet
from sstool.checkpoint.attention_pattern import LayerAttention
from sstool.checkpoint.describe import Checkpoint
from sstool.checkpoint.rope import Table, rope_tables
from sstool.graph.passes.drop_functions import DropFunctionsPass
from sstool.graph.passes.elide import ElidePass
from sstool.graph.passes.embedding_scale import EmbeddingScalePass
from sstool.graph.passes.fold_constants import FoldConstantsPass
from sstool.graph.passes.fuse_residual_norms import FuseResidualNormsPass
from sstool.graph.passes.fuse_silu import FuseSiluPass
from sstool.graph.passes.logits_to_keep import LogitsToKeepPass
from sstool.graph.passes.rename_kv_cache import RenameKvCachePass
from sstool.graph.passes.sequence_lengths import SequenceLengthsPass
from sstool.graph.passes.tie_head import TieHeadPass
from sstool.graph.passes.top_k_outputs import TopKOutputsPass
from sstool.graph.passes.tree_attention import CausalOnlyPass, TreeAttentionPass
from sstool.graph.passes.windows_and_rope import WindowsAndRopePass


@dataclass(frozen=True, kw_only=True)
class LoweringPlan:
    """What the passes need to know of the model, for a context.

    Attributes:
        hidden_size: width of the residual stream.
        attention: each layer's.
        rope: the table of each rotary embedding that they name, with as many rows as the context has positions.
    """

    hidden_size: int
    attention: tuple[LayerAttention, ...]
    rope: Mapping[str, Table]


def plan_lowering(checkpoint: Checkpoint, max_context: int) -> LoweringPlan:
    """Returns the plan of a checkpoint for a context of `max_context` positions."""
    return LoweringPlan(
        hidden_size=checkpoint.hidden_size,
        attention=checkpoint.attention,
        rope=rope_tables(checkpoint.config, max_context),
    )


def lower_verify(model: ir.Model, plan: LoweringPlan) -> ir.Model:
    """Rewrites a decoder graph to the graph contract, in place, as fast as ONNX Runtime's own extended optimizations make it.

    Raises:
        UnsupportedModelError: if the graph is not one that the passes can take.
    """
    passes = ir.passes.Sequential(
        FoldConstantsPass(),
        EmbeddingScalePass(plan.hidden_size),
        SequenceLengthsPass(),
        RenameKvCachePass(),
        WindowsAndRopePass(plan.attention, plan.rope),
        TreeAttentionPass(),
        TieHeadPass(),
        FuseSiluPass(),
        LogitsToKeepPass(),
        TopKOutputsPass(),
        DropFunctionsPass(),
        common.NameFixPass(),
    )
    lowered = passes(model).model
    lowered.graph.name = "verify"  # mobius names it after the folder, which is nobody's business
    return lowered


def lower_draft(verify: ir.Model, skip: SkipSet) -> ir.Model:
    """Returns a draft: a copy of the verify graph, over the same tensors, without the sublayers of `skip`.

    Raises:
        UnsupportedModelError: if a sublayer cannot be taken out.
    """
    draft = CausalOnlyPass()(FuseResidualNormsPass()(ElidePass(skip)(verify.clone()))).model
    draft.graph.name = "draft"
    return draft
