"""Scripted models: tiny artifacts whose graphs look logits up in tables, so every result can be computed.

The logits after token t at absolute position p are `table[p % period, t]`. A script with history also reads
the previous token from the KV cache. The engines are real ONNX Runtime sessions on complete artifacts, with
manifest, packed weights and tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ssruntime import graph_io
from ssruntime.acceptance import make_acceptance
from ssruntime.artifact import (
    DRAFT_GRAPH,
    MANIFEST,
    SCHEMA_VERSION,
    STEP_GRAPH,
    VERIFY_GRAPH,
    WEIGHTS,
    DraftEntry,
    FileEntry,
    KvLayout,
    Manifest,
    ModelInfo,
    SkipSet,
)
from ssruntime.backends.base import StepOutput
from ssruntime.config import DecodeSettings
from ssruntime.proposal import Alternative, Proposal
from ssruntime.stopping import StoppingRule

Table = NDArray[np.float32]

EOS: Final = 0
"""The end-of-sequence token of `letters`."""
OWN_WEIGHTS: Final = "draft.bin"
"""File of a draft's own weights."""
_ALIGNMENT: Final = 4096
_EXTERNAL_FROM: Final = 1024
_HISTORY_FACTOR: Final = 3


@dataclass(frozen=True, kw_only=True)
class Script:
    """The logit tables of a scripted model.

    Attributes:
        verify: the target's logits, float32[period, vocab, vocab].
        draft: the draft's logits, of the same shape; None for an artifact without a draft.
        history: whether logits also depend on the token before the last one, which is in the KV cache.
        draft_kv_differs: whether a draft writes other KV-cache contents than verify, as a real draft does.
    """

    verify: Table
    draft: Table | None = None
    history: bool = False
    draft_kv_differs: bool = False

    @property
    def period(self) -> int:
        """Number of positions after which the tables repeat."""
        return int(self.verify.shape[0])

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return int(self.verify.shape[1])

    def target(self, ids: Sequence[int]) -> Table:
        """Returns the target's logits float32[vocab] after a whole sequence."""
        position = len(ids) - 1
        before = ids[position - 1] if self.history and position > 0 else 0
        row: Table = self.verify[position % self.period, (ids[position] + _HISTORY_FACTOR * before) % self.vocab]
        return row


def random_script(
    seed: int, *, vocab: int = 8, period: int = 5, agreement: float = 0.7, scale: float = 3.0, history: bool = False
) -> Script:
    """Returns random tables; the draft's mix the target's with noise."""
    random = np.random.default_rng(seed)
    verify = (scale * random.standard_normal((period, vocab, vocab))).astype(np.float32)
    other = (scale * random.standard_normal((period, vocab, vocab))).astype(np.float32)
    return Script(
        verify=verify, draft=(agreement * verify + (1 - agreement) * other).astype(np.float32), history=history, draft_kv_differs=history
    )


def successor_table(successors: Sequence[int], *, vocab: int, sharpness: float = 20.0) -> Table:
    """Returns a table float32[1, vocab, vocab] in which `successors[t]` almost certainly follows token t."""
    table = np.zeros((1, vocab, vocab), dtype=np.float32)
    for token, successor in enumerate(successors):
        table[0, token, successor] = sharpness
    return table


def phrase_table(tokens: Sequence[int], *, vocab: int, sharpness: float = 20.0) -> Table:
    """Returns a table float32[len(tokens), vocab, vocab] in which `tokens[p]` follows position p."""
    table = np.zeros((len(tokens), vocab, vocab), dtype=np.float32)
    for position, token in enumerate(tokens):
        table[position, :, token] = sharpness
    return table


def plain_tokens(script: Script, prompt: Sequence[int], settings: DecodeSettings, max_context: int) -> tuple[list[int], str]:
    """Returns the tokens and the finish reason of autoregressive decoding (mode `plain`).

    They are computed in Python, from the tables alone. Stop strings are ignored.
    """
    acceptance = make_acceptance(settings, len(prompt))
    ids = list(prompt)
    while True:
        logits = script.target(ids)[None]
        ids.append(acceptance.sample(step_of(logits), len(ids)))
        count = len(ids) - len(prompt)
        if ids[-1] in settings.eos_token_ids:
            return ids[len(prompt) :], "eos"
        if ids[-1] in settings.stop_token_ids:
            return ids[len(prompt) :], "stop"
        if count == settings.max_new_tokens:
            return ids[len(prompt) :], "length"
        if len(ids) == max_context:
            return ids[len(prompt) :], "context"


def step_of(logits: Table) -> StepOutput:
    """Returns the output of an engine pass with `logits: float32[N, vocab]`."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    top = np.argsort(-logits, axis=-1, kind="stable")[:, : graph_io.MAX_TOP_TOKENS]
    return StepOutput(
        tokens=logits.argmax(-1),
        confidence=weights.max(-1) / weights.sum(-1),
        top_tokens=top,
        top_logits=np.take_along_axis(logits, top, axis=-1),
        logits=logits,
    )


def write_artifact(
    folder: Path,
    script: Script,
    *,
    tokenizer: Tokenizer | None = None,
    generation: Mapping[str, object] | None = None,
    max_context: int = 64,
    stopping: StoppingRule | None = None,
    max_alternatives: int | None = None,
    window: int | None = None,
    chat_template: str | None = None,
    tokenizer_config: Mapping[str, object] | None = None,
    name: str = "scripted",
    own_draft_weights: bool = False,
) -> Path:
    """Writes a complete artifact and returns its folder.

    Args:
        folder: folder of the artifact; it must not exist yet.
        script: logit tables of the model.
        tokenizer: tokenizer of the model; by default `letters(vocab)`.
        generation: content of `generation_config.json`; by default `EOS` ends the text.
        max_context: context limit in the manifest.
        stopping: tuned stopping rule of the draft.
        max_alternatives: tuned number of alternatives.
        window: sliding window in the manifest; the graphs have none.
        chat_template: content of `chat_template.jinja`, if any.
        tokenizer_config: content of `tokenizer_config.json`, if any.
        name: name of the model in the manifest.
        own_draft_weights: whether the draft's table lies in a file of its own.
    """
    folder.mkdir(parents=True)
    weights = _Weights(script, own_draft_weights=own_draft_weights)
    for file, data in weights.files.items():
        (folder / file).write_bytes(data)
    (folder / VERIFY_GRAPH).write_bytes(_graph(script, weights, "verify"))
    (folder / STEP_GRAPH).write_bytes(_graph(script, weights, "step"))
    if script.draft is not None:
        (folder / DRAFT_GRAPH).write_bytes(_graph(script, weights, "draft"))
    (tokenizer or letters(script.vocab)).save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS} if generation is None else dict(generation)))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_config)))
    entry = DraftEntry(
        name="draft",
        graph=DRAFT_GRAPH,
        dtype="fp32",
        skip=SkipSet(attention=(1,)),
        weights=(OWN_WEIGHTS,) if own_draft_weights else (),
        stopping=stopping,
        max_alternatives=max_alternatives,
    )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelInfo(
            source=name,
            revision=None,
            family="scripted",
            architecture="Scripted",
            num_layers=2,
            hidden_size=script.vocab,
            vocab_size=script.vocab,
            num_parameters=script.verify.size,
            weight_bytes=len(weights.files[WEIGHTS]),
            window=window,
        ),
        target="ort-cpu",
        dtype="fp32",
        max_context=max_context,
        kv=KvLayout(num_layers=2, kv_heads=1, head_dim=1, dtype="fp32"),
        rope={},
        weights=(WEIGHTS,),
        drafts=() if script.draft is None else (entry,),
        files={path.name: _file_entry(path) for path in sorted(folder.iterdir())},
        tools={},
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def edit_manifest(folder: Path, **changes: object) -> None:
    """Sets top-level keys of an artifact's manifest."""
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refresh_file_entries(folder: Path) -> None:
    """Updates the sizes and digests in the manifest after files were edited."""
    names = json.loads((folder / MANIFEST).read_text())["files"]
    edit_manifest(folder, files={n: {"size": e.size, "sha256": e.sha256} for n in names for e in [_file_entry(folder / n)]})


def letters(vocab: int) -> Tokenizer:
    """Returns a tokenizer of single characters: `</s>`, then a, b, c, ..."""
    return pieces(["</s>", *(string.ascii_letters + string.digits + " .,;:!?")[: vocab - 1]])


def pieces(tokens: Sequence[str]) -> Tokenizer:
    """Returns a byte-level tokenizer whose token i is the text `tokens[i]`; tokens like `<...>` are special.

    It encodes a text character by character.
    """
    special = [t for t in tokens if t.startswith("<") and t.endswith(">")]
    return byte_level({t if t in special else _shown(t.encode()): i for i, t in enumerate(tokens)}, special)


def every_byte() -> Tokenizer:
    """Returns a tokenizer of 258 tokens: `</s>`, `<s>`, then the 256 bytes in order."""
    return byte_level({"</s>": 0, "<s>": 1} | {_shown(bytes([b])): b + 2 for b in range(256)}, ["</s>", "<s>"])


def byte_level(vocab: dict[str, int], special: Sequence[str]) -> Tokenizer:
    """Returns a byte-level BPE tokenizer without merges."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Returns a tokenizer like Llama 2's: words with a leading-space mark, and bytes for everything else.

    `<s>` is 0, `</s>` is 1, the bytes are 2 to 257.
    """
    words = ["▁", "a", "b", "▁a", "▁the", "END", "é"]
    vocab = {"<s>": 0, "</s>": 1} | {f"<0x{b:02X}>": b + 2 for b in range(256)} | {w: 258 + i for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>")])
    return tokenizer


def _shown(data: bytes) -> str:
    """Returns bytes in the printable letters of GPT-2's byte-level alphabet."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [b for b in range(256) if b not in visible]
    return "".join(chr(b) if b in visible else chr(256 + hidden.index(b)) for b in data)


class _Weights:
    """One weights file with the target's rows, the draft's rows and an identity matrix.

    ONNX Runtime packs the identity matrix, so scripted artifacts have packed weights.
    """

    def __init__(self, script: Script, *, own_draft_weights: bool) -> None:
        shared = [] if script.draft is None or own_draft_weights else [script.draft]
        self.files = {WEIGHTS: b""}
        self.own = []
        if own_draft_weights:
            assert script.draft is not None
            self.files[OWN_WEIGHTS] = b""
            self.own = [self._place(OWN_WEIGHTS, "own_table", script.draft.reshape(-1, script.vocab))]
        tables = [script.verify, *shared]
        rows = np.concatenate([t.reshape(-1, script.vocab) for t in tables])
        short = -(-_EXTERNAL_FROM // (4 * script.vocab)) - len(rows)
        table = np.pad(rows, ((0, max(0, short)), (0, 0)))
        self.tensors = [self._place(WEIGHTS, "table", table), self._place(WEIGHTS, "identity", np.eye(script.vocab, dtype=np.float32))]

    def _place(self, file: str, name: str, array: Table) -> onnx.TensorProto:
        tensor = numpy_helper.from_array(array, name)
        if array.nbytes < _EXTERNAL_FROM:
            return tensor
        offset = -(-len(self.files[file]) // _ALIGNMENT) * _ALIGNMENT
        raw = tensor.raw_data
        self.files[file] = self.files[file].ljust(offset, b"\0") + raw
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": file, "offset": offset, "length": len(raw)}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        return tensor


class _Nodes:
    """Collects nodes and small constants, with generated names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        output = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def top(self, logits: str, count: int) -> None:
        self.nodes.append(helper.make_node("TopK", [logits, self.constant([count])], [graph_io.TOP_LOGITS, graph_io.TOP_TOKENS], axis=-1))

    def constant(self, value: object, dtype: type[np.generic] = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name


def _graph(script: Script, weights: _Weights, engine: Literal["verify", "step", "draft"]) -> bytes:
    g = _Nodes()
    is_draft = engine == "draft"
    # The step engine has one token a row, and counts one more.
    padding = graph_io.STEP_PADDING if engine == "step" else 0
    counted = g.add("Sub", g.add("Cast", graph_io.QUERY_SEQLENS, to=TensorProto.INT64), g.constant([padding]))
    end = g.add("Sub", g.add("Cast", graph_io.SEQLENS_K, to=TensorProto.INT64), g.constant([padding - 1]))
    start = g.add("Unsqueeze", g.add("Sub", end, counted), g.constant([1]))
    length = g.add("Squeeze", g.add("Shape", graph_io.INPUT_IDS, start=1, end=2))
    offsets = g.add("Unsqueeze", g.add("Range", g.constant(0), length, g.constant(1)), g.constant([0]))
    slots = g.add("Add", offsets, start)
    is_valid = g.add("Less", offsets, g.add("Unsqueeze", counted, g.constant([1])))
    positions, tokens = graph_io.POSITION_IDS, graph_io.INPUT_IDS
    layers: list[int] = []
    state = tokens
    if script.history:
        layers = [0] if is_draft else [0, 1]
        before = _history(script, g, tokens, slots, is_valid, positions, is_draft=is_draft)
        if not is_draft:
            for kind in ("key", "value"):
                g.add("Identity", graph_io.past_name(1, kind), name=graph_io.present_name(1, kind))
        state = g.add("Mod", g.add("Add", tokens, g.add("Mul", before, g.constant(_HISTORY_FACTOR))), g.constant(script.vocab))
    row = g.add("Add", g.add("Mul", g.add("Mod", positions, g.constant(script.period)), g.constant(script.vocab)), state)
    has_own = is_draft and bool(weights.own)
    if is_draft and not has_own:
        row = g.add("Add", row, g.constant(script.period * script.vocab))
    looked_up = g.add("Gather", "own_table" if has_own else "table", g.add("GatherElements", row, graph_io.LOGITS_INDEX, axis=1), axis=0)
    logits = g.add("MatMul", looked_up, "identity", name=graph_io.LOGITS)
    g.top(logits, min(graph_io.MAX_TOP_TOKENS, script.vocab))
    g.add("Gather", graph_io.TOP_TOKENS, g.constant(0), name=graph_io.TOKEN, axis=-1)
    g.add("ReduceMax", g.add("Softmax", logits, axis=-1), g.constant([-1]), name=graph_io.CONFIDENCE, keepdims=0)
    tensors = [*(weights.own if is_draft else []), *weights.tensors]
    return _model(script, g, tensors, layers, takes_trees=engine == "verify")


def _history(script: Script, g: _Nodes, tokens: str, slots: str, is_valid: str, positions: str, *, is_draft: bool) -> str:
    """Adds nodes that write the valid tokens of each row to layer 0's KV cache.

    Returns:
        The name of the value with the token before each position, 0 before the first.
    """
    # Padding writes what is there already, and must not point behind the end of the KV cache.
    capacity = g.add("Shape", graph_io.past_name(0, "key"), start=2, end=3)
    inside = g.add("Min", slots, g.add("Sub", capacity, g.constant([1])))
    place = g.add("Unsqueeze", inside, g.constant([1, 3]))
    written = g.add("Add", tokens, g.constant(1)) if is_draft and script.draft_kv_differs else tokens
    new = g.add("Unsqueeze", g.add("Cast", written, to=TensorProto.FLOAT), g.constant([1, 3]))
    for kind in ("key", "value"):
        past = graph_io.past_name(0, kind)
        kept = g.add("GatherElements", past, place, axis=2)
        values = g.add("Where", g.add("Unsqueeze", is_valid, g.constant([1, 3])), new, kept)
        g.add("ScatterElements", past, place, values, name=graph_io.present_name(0, kind), axis=2)
    cached = g.add("Squeeze", graph_io.present_name(0, "value"), g.constant([1, 3]))
    earlier = g.add("Max", g.add("Sub", positions, g.constant(1)), g.constant(0))
    before = g.add("Cast", g.add("GatherElements", cached, earlier, axis=1), to=TensorProto.INT64)
    return g.add("Mul", before, g.add("Cast", g.add("Greater", positions, g.constant(0)), to=TensorProto.INT64))


def _model(script: Script, g: _Nodes, weights: Sequence[onnx.TensorProto], layers: Sequence[int], *, takes_trees: bool) -> bytes:
    def value(name: str, kind: int, shape: list[str | int | None]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    kv_buffers = [(layer, kind) for layer in layers for kind in ("key", "value")]
    of_verify = [
        value(graph_io.PAST_LENGTH, TensorProto.INT64, ["B"]),
        value(graph_io.TREE_MASK, TensorProto.FLOAT, ["B", 1, "S", "S"]),
    ]
    inputs = [
        value(graph_io.INPUT_IDS, TensorProto.INT64, ["B", "S"]),
        value(graph_io.QUERY_SEQLENS, TensorProto.INT32, ["B"]),
        value(graph_io.SEQLENS_K, TensorProto.INT32, ["B"]),
        value(graph_io.TOTAL_SEQUENCE_LENGTH, TensorProto.INT32, []),
        value(graph_io.POSITION_IDS, TensorProto.INT64, ["B", "S"]),
        *(of_verify if takes_trees else []),
        value(graph_io.LOGITS_INDEX, TensorProto.INT64, ["B", "N"]),
        *(value(graph_io.past_name(i, k), TensorProto.FLOAT, ["B", 1, "context", 1]) for i, k in kv_buffers),
    ]
    outputs = [
        value(graph_io.TOKEN, TensorProto.INT64, ["B", "N"]),
        value(graph_io.CONFIDENCE, TensorProto.FLOAT, ["B", "N"]),
        value(graph_io.TOP_TOKENS, TensorProto.INT64, ["B", "N", min(graph_io.MAX_TOP_TOKENS, script.vocab)]),
        value(graph_io.TOP_LOGITS, TensorProto.FLOAT, ["B", "N", min(graph_io.MAX_TOP_TOKENS, script.vocab)]),
        value(graph_io.LOGITS, TensorProto.FLOAT, ["B", "N", script.vocab]),
        *(value(graph_io.present_name(i, k), TensorProto.FLOAT, ["B", 1, "context", 1]) for i, k in kv_buffers),
    ]
    graph = helper.make_graph(g.nodes, "scripted", inputs, outputs, initializer=[*g.constants, *weights])
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    return data


def _file_entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def proposal_of(tokens: Iterable[int], alternatives: Iterable[Alternative] = ()) -> Proposal:
    """Returns a proposal of tokens that were given with certainty, and alternatives."""
    proposal = Proposal()
    for token in tokens:
        proposal.append(token, "test")
    proposal.alternatives = list(alternatives)
    return proposal
