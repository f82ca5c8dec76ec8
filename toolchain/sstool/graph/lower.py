"""Runs the passes in their order: from the graph that mobius builds to the verify, step and draft graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime.artifact import SkipSet
from sstool.checkpoint.attention_pattern import LayerAttention
from sstool.checkpoint.describe import Checkpoint
from sstool.checkpoint.rope import ropes
from sstool.graph.passes.drop_functions import DropFunctionsPass
from sstool.graph.passes.elide import ElidePass
from sstool.graph.passes.embedding_scale import EmbeddingScalePass
from sstool.graph.passes.fold_constants import FoldConstantsPass
from sstool.graph.passes.fuse_gate_up import FuseGateUpPass
from sstool.graph.passes.fuse_residual_norms import FuseResidualNormsPass
from sstool.graph.passes.fuse_silu import FuseSiluPass
from sstool.graph.passes.logits_to_keep import LogitsToKeepPass
from sstool.graph.passes.rename_kv_cache import RenameKvCachePass
from sstool.graph.passes.repeat_row import RepeatRowPass
from sstool.graph.passes.sequence_lengths import SequenceLengthsPass
from sstool.graph.passes.tie_head import TieHeadPass
from sstool.graph.passes.top_k_outputs import TopKOutputsPass
from sstool.graph.passes.tree_attention import CausalOnlyPass, TreeAttentionPass
from sstool.graph.passes.windows_and_rope import WindowsAndRopePass
from sstool.graph.sequential import run_passes


@dataclass(frozen=True, kw_only=True)
class LoweringPlan:
    """What the passes need to know about the model.

    Attributes:
        hidden_size: width of the residual stream.
        attention: sliding window and RoPE of each layer.
        rope: number of pairs that each RoPE rotates, by its name in `attention`.
    """

    hidden_size: int
    attention: tuple[LayerAttention, ...]
    rope: Mapping[str, int]


def plan_lowering(checkpoint: Checkpoint) -> LoweringPlan:
    """Returns the plan for a checkpoint."""
    return LoweringPlan(
        hidden_size=checkpoint.hidden_size,
        attention=checkpoint.attention,
        rope={name: len(rope.frequencies) for name, rope in ropes(checkpoint.config).items()},
    )


def lower_verify(model: ir.Model, plan: LoweringPlan) -> ir.Model:
    """Returns the verify graph: `model`, rewritten in place to the graph contract.

    The passes fuse what ONNX Runtime's extended optimizations would fuse, so these find nothing left to do.

    Raises:
        UnsupportedModelError: if a pass cannot handle the graph.
    """
    lowered = run_passes(
        model,
        FoldConstantsPass(),
        EmbeddingScalePass(plan.hidden_size),
        SequenceLengthsPass(),
        RenameKvCachePass(),
        WindowsAndRopePass(plan.attention, plan.rope),
        TreeAttentionPass(),
        TieHeadPass(),
        FuseSiluPass(),
        FuseGateUpPass(),
        LogitsToKeepPass(),
        TopKOutputsPass(),
        DropFunctionsPass(),
        common.NameFixPass(),
    )
    lowered.graph.name = "verify"  # mobius names it after the checkpoint's folder, which the artifact must not reveal
    return lowered


def lower_step(verify: ir.Model) -> ir.Model:
    """Returns the step graph: the verify graph for passes of one token, as a copy over the same tensors."""
    step = RepeatRowPass()(CausalOnlyPass()(verify.clone())).model
    step.graph.name = "step"
    return step


def lower_draft(verify: ir.Model, skip: SkipSet) -> ir.Model:
    """Returns a draft graph: the verify graph without the skipped sublayers, as a copy over the same tensors.

    Raises:
        UnsupportedModelError: if a sublayer cannot be left out.
    """
    draft = CausalOnlyPass()(FuseResidualNormsPass()(ElidePass(skip)(verify.clone()))).model
    draft.graph.name = "draft"
    return draft
