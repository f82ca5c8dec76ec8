"""Compares one checkpoint with transformers: logits of the verify and draft engines, and decoded text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ssruntime import Engine, GenerationConfig, load
from ssruntime.artifact import STEP_GRAPH, VERIFY_GRAPH, Artifact, SkipSet
from ssruntime.backends.onnx_wire import external_data
from ssruntime.backends.ort import packing
from ssruntime.backends.ort.thread_pool import choose_threads
from sstool.artifact_files.bits_record import tie_tolerance
from sstool.checkpoint.describe import Checkpoint, describe_checkpoint
from sstool.checkpoint.rope import ropes
from sstool.graph.build import build_decoder
from sstool.graph.lower import LoweringPlan, lower_draft, lower_verify, plan_lowering
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.skip_set import SkipSpec
from sstool.validation.lossless import compare, traced
from sstool.validation.parity import measure_parity
from sstool.validation.reference import Reference
from tests.graph_feeds import first_pass
from tests.greedy_reference import greedy_reference, load_reference, untied_difference
from tests.toolchain.conftest import open_graph
from tests.toolchain.tiny_llama import VOCAB

CONTEXT: Final = 64
PRODUCTS: Final = ("MatMul", "FusedMatMul", "Gemm")
TOLERANCE: Final = 1e-4
NUM_TOKENS: Final = 64
IDS: Final = tuple(int(i) for i in np.random.default_rng(3).integers(0, VOCAB, 56))
"""Token ids, more than twice as many as the largest sliding window of the tests."""
PROMPT: Final = IDS[:30]
GREEDY: Final = {"temperature": 0.0}
SAMPLED: Final = {"temperature": 0.8, "top_p": 0.95, "seed": 5}


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The measurements of one checkpoint.

    Attributes:
        parity: largest logit error of the verify engine, in prefill and at query lengths 1, 4 and 16, as a
            fraction of the largest logit.
        draft_parity: the same for the draft engine and for drafts with other skip sets; their reference is
            the checkpoint with the outputs of the skipped sublayers set to 0.
        identical: verdict of the comparison of each speculative run with autoregressive decoding (mode
            `plain`).
        bits_compared: number of rows of logits, from passes of every kind, that the gate compared to the bit.
        bits_differing: number of these rows in which a pass of some kind differs from autoregressive
            decoding, in at least one bit.
        unpacked: weights of products that ONNX Runtime does not pack: only packed ones have the same
            bits for one row and for several.
        untied_difference: first index at which the greedy text of mode `plain` differs from transformers'
            text without a tie; None if there is none.
    """

    parity: float
    draft_parity: float
    identical: tuple[str, ...]
    bits_compared: int
    bits_differing: int
    unpacked: tuple[str, ...]
    untied_difference: int | None

    @property
    def holds(self) -> bool:
        """Whether the measurements are those that are promised for a supported family."""
        is_exact = max(self.parity, self.draft_parity) <= TOLERANCE
        is_exact &= self.bits_differing == 0 and not self.unpacked
        return is_exact and set(self.identical) == {"yes"} and self.untied_difference is None


def prove(model: Path, out: Path) -> Proof:
    """Exports a checkpoint of at least six layers to `out`, and returns its measurements."""
    checkpoint = describe_checkpoint(model)
    skip = SkipSpec(attention=(1, 2, checkpoint.num_layers - 1), mlp=(0, 2, 3))
    artifact = export_artifact(ExportRequest(model=model, out=out, skip=skip))
    graph, reference = verify_graph(checkpoint), Reference(model)
    with load(artifact.folder, max_sequences=1) as engine:
        draft = measure_parity(engine.backend, model, draft=skip.skip()).max_relative
        theirs, rows = greedy_reference(load_reference(model), PROMPT, NUM_TOKENS)
        ours = engine.generate(list(PROMPT), _config("plain", GREEDY)).token_ids
        return Proof(
            parity=artifact.manifest.gate["parity"]["max_relative"],
            draft_parity=max(draft, *(draft_error(checkpoint, graph, reference, s) for s in skip_sets(checkpoint.num_layers).values())),
            unpacked=tuple(unpacked_products(artifact)),
            bits_compared=artifact.manifest.gate["bits"]["rows"],
            bits_differing=artifact.manifest.gate["bits"]["differing"],
            identical=tuple(_verdict(engine, how) for how in (GREEDY, SAMPLED)),
            untied_difference=untied_difference(ours, theirs, rows),
        )


def unpacked_products(artifact: Artifact) -> Iterator[str]:
    """Yields the names of the weights of products in the artifact's graphs that are not packed."""
    entry, _ = packing.open_packed(artifact, verify=False, options=choose_threads(1, False).make)
    assert entry is not None
    packed = {name for name, tensor in entry.tensors.items() if any(key.startswith("prepacked") for key in external_data(tensor))}
    for graph in (VERIFY_GRAPH, STEP_GRAPH):
        model = onnx.load(artifact.path(graph), load_external_data=False).graph
        dims = {tensor.name: tensor.dims for tensor in model.initializer}
        for node in model.node:
            if node.op_type in PRODUCTS:
                yield from (f"{graph}: {name}" for name in node.input if len(dims.get(name, ())) > 1 and name not in packed)


def skip_sets(num_layers: int) -> dict[str, SkipSet]:
    """Returns the skip sets that are tested for every family, by kind."""
    last = num_layers - 1
    return {
        "attention only": SkipSet(attention=(1, 3)),
        "mlp only": SkipSet(mlp=(0, 4)),
        "both": SkipSet(attention=(1, 4), mlp=(2, 4)),
        "first layer": SkipSet(attention=(0,), mlp=(0,)),
        "last layer": SkipSet(attention=(last,), mlp=(last,)),
        "adjacent sublayers": SkipSet(attention=(2, 3, 4), mlp=(1, 2, 3)),
    }


def draft_error(checkpoint: Checkpoint, verify: ir.Model, reference: Reference, skip: SkipSet) -> float:
    """Returns the largest logit error of a draft graph, as a fraction of the largest logit.

    The reference is the checkpoint with the outputs of the skipped sublayers set to 0.
    """
    return relative_error(run(checkpoint, lower_draft(verify, skip)), reference.logits(IDS, range(len(IDS)), skip=skip))


def verify_graph(checkpoint: Checkpoint, plan: LoweringPlan | None = None) -> ir.Model:
    """Returns a checkpoint's verify graph, lowered with `plan` if it is given."""
    return lower_verify(build_decoder(checkpoint.folder), plan or plan_lowering(checkpoint))


def run(checkpoint: Checkpoint, model: ir.Model, ids: Sequence[int] = IDS) -> NDArray[np.float32]:
    """Returns the logits float32[len(ids), vocab] of one pass of a checkpoint's graph over a sequence."""
    session = open_graph(model)
    logits: NDArray[np.float32] = session.run(["logits"], first_pass(session, ids, CONTEXT, ropes(checkpoint.config)))[0][0]
    return logits


def relative_error(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Returns the largest difference as a fraction of the largest reference logit."""
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def _config(mode: str, how: dict[str, float]) -> GenerationConfig:
    # A fixed number of draft tokens: the default rule may draft none where it does not pay.
    exits = {} if mode == "plain" else {"exit": "fixed", "max_draft": 6}
    return GenerationConfig.from_mapping({"mode": mode, "max_new_tokens": NUM_TOKENS, "ignore_eos": True, **exits, **how})


def _verdict(engine: Engine, how: dict[str, float]) -> str:
    plain = engine.generate(list(PROMPT), _config("plain", how)).token_ids
    speculative = _config("speculative", how)
    _, trace = traced(engine, list(PROMPT), speculative)
    return compare(engine, speculative, plain=plain, run=trace, tie_tolerance=tie_tolerance(engine)).verdict
