"""Every supported shape of Llama passes the gate with a margin; an export that fails leaves no files."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from ssruntime.artifact import MANIFEST, WEIGHTS, Artifact, SkipSet, check_digests, read_artifact
from ssruntime.config import GenerationConfig, read_generation_config
from ssruntime.engine import Engine, load
from ssruntime.errors import ArtifactError, CheckpointError, ConfigError, RecipeError, UnsupportedModelError
from sstool.artifact_files import assemble
from sstool.checkpoint.describe import describe_checkpoint
from sstool.graph.lower import LoweringPlan, lower_verify
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.skip_set import SkipSpec, default_skip_set
from sstool.validation import gate
from sstool.validation.bits import GATE_CONTEXT
from sstool.validation.opening import open_to_check
from sstool.validation.parity import measure_parity, plan_parity
from tests.toolchain.conftest import SKIP
from tests.toolchain.tiny_llama import LAYERS, VARIANTS, VOCAB, edit_json, make_llama, rewrite_weights, shard

TIGHT = 1e-5
"""Largest relative error of these models. The gate allows ten times as much."""


def test_the_manifest_describes_the_artifact(tiny_artifact: Path, tiny_model: Path) -> None:
    artifact = read_artifact(tiny_artifact)
    check_digests(artifact)
    manifest = artifact.manifest
    assert (manifest.target, manifest.dtype, manifest.max_context) == ("ort-cpu", "fp32", 256)
    assert (manifest.model.source, manifest.model.revision, manifest.model.family) == ("model", None, "llama")
    assert (manifest.model.num_layers, manifest.model.vocab_size) == (LAYERS, VOCAB)
    assert manifest.model.num_parameters == describe_checkpoint(tiny_model).num_parameters
    assert (manifest.kv.num_layers, manifest.kv.kv_heads, manifest.kv.head_dim) == (LAYERS, 2, 16)
    assert [d.skip for d in manifest.drafts] == [SKIP.skip()]
    assert manifest.gate["parity"]["passed"]
    assert manifest.gate["lossless"]["identical"] == "yes"
    assert manifest.gate["lossless"]["tokens"] == 32
    assert set(manifest.files) == {p.name for p in tiny_artifact.iterdir()} - {MANIFEST}
    assert str(tiny_model.parent) not in (tiny_artifact / MANIFEST).read_text()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_shape_of_llama_has_parity(name: str, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", **VARIANTS[name])
    artifact = export_artifact(ExportRequest(model=model, out=tmp_path / "out", skip=SKIP))
    parity = artifact.manifest.gate["parity"]
    assert parity["max_relative"] <= TIGHT
    assert parity["top1_agreement"] == 1.0
    assert parity["positions"] == 256
    engine = load(artifact.folder)
    try:
        report = measure_parity(engine.backend, model, draft=SKIP.skip())
    finally:
        engine.close()
    assert report.max_relative <= TIGHT
    assert report.min_cosine > 0.9999


def test_an_lm_head_of_its_own_is_exported_although_the_config_ties_it(tiny_copy: Path, tmp_path: Path) -> None:
    """The gate compares with transformers, which keeps the two apart."""
    head = np.random.default_rng(5).standard_normal((VOCAB, 64)).astype(np.float32) / 8
    rewrite_weights(tiny_copy, lambda tensors: tensors.update({"lm_head.weight": head}))
    artifact = export_artifact(ExportRequest(model=tiny_copy, out=tmp_path / "out", skip=SKIP))
    assert artifact.manifest.gate["parity"]["max_relative"] <= TIGHT


def test_a_single_file_of_weights_is_exported_although_there_is_an_index(tiny_copy: Path, tmp_path: Path) -> None:
    """The gate compares with transformers, which prefers the single file."""
    whole = (tiny_copy / "model.safetensors").read_bytes()
    rewrite_weights(tiny_copy, lambda tensors: tensors.update({name: 2 * values for name, values in tensors.items()}))
    shard(tiny_copy)
    (tiny_copy / "model.safetensors").write_bytes(whole)
    artifact = export_artifact(ExportRequest(model=tiny_copy, out=tmp_path / "out", skip=SKIP))
    assert artifact.manifest.gate["parity"]["max_relative"] <= TIGHT


def test_the_parity_plan_covers_prefill_and_query_lengths_beyond_the_original_context(tmp_path: Path) -> None:
    checkpoint = describe_checkpoint(make_llama(tmp_path / "model", **VARIANTS["yarn"], max_position_embeddings=4096))
    stretched = dataclasses.replace(checkpoint, original_context=512)
    plan = plan_parity(stretched, 4096)
    assert len(plan.ids) == 512 + 64
    assert len(plan.positions) <= 256
    assert plan.positions[0] == 0
    assert plan.prefill - 1 in plan.positions
    assert {1, 4, 16} == set(plan.widths)
    assert plan.prefill + sum(plan.widths) == len(plan.ids)
    assert len(plan_parity(checkpoint, 8).ids) == 8


def test_half_precision_checkpoints_are_exported_in_fp32(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", dtype="bfloat16")
    artifact = export_artifact(ExportRequest(model=model, out=tmp_path / "out", skip=SKIP))
    assert artifact.manifest.gate["parity"]["max_relative"] <= TIGHT


def test_an_export_without_a_skip_set_has_the_default_one(tiny_model: Path, tmp_path: Path) -> None:
    artifact = export_artifact(ExportRequest(model=tiny_model, out=tmp_path / "out"))
    assert [d.skip for d in artifact.manifest.drafts] == [default_skip_set(LAYERS)]


def test_a_second_export_has_the_same_files_byte_for_byte(tiny_model: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    again = export_artifact(ExportRequest(model=tiny_model, out=tmp_path / "out", skip=SKIP))
    assert again.manifest.files == read_artifact(tiny_artifact).manifest.files


def test_an_artifact_with_a_shorter_context_decodes_up_to_that_context(tiny_model: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    artifact = export_artifact(ExportRequest(model=tiny_model, out=tmp_path / "out", skip=SKIP, max_context=40))
    assert artifact.manifest.max_context == 40
    engine = load(artifact.folder)
    whole = load(tiny_artifact)
    try:
        config = GenerationConfig(temperature=0.0, max_new_tokens=60, ignore_eos=True)
        completion = engine.generate([5, 6, 7], config)
        assert completion.finish_reason == "context"
        assert completion.token_ids == whole.generate([5, 6, 7], config).token_ids[: len(completion.token_ids)]
    finally:
        engine.close()
        whole.close()


@pytest.mark.parametrize("max_context", [0, 1, -5, 257])
def test_a_context_out_of_range_is_refused(max_context: int, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_context is out of range"):
        export_artifact(ExportRequest(model=tiny_model, out=tmp_path / "out", max_context=max_context))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": "ort-cpuu"}, ConfigError, "target must be one of ort-cpu, ort-cuda, tensorrt, found 'ort-cpuu'"),
        ({"dtype": "fp8"}, ConfigError, "dtype must be one of fp32, fp16, bf16, int8, int4, found 'fp8'"),
        ({"skip": SkipSpec(mlp=(LAYERS,))}, RecipeError, f"mlp layer {LAYERS} does not exist"),
        ({"model": "./nowhere"}, CheckpointError, "no model folder"),
    ],
)
def test_a_request_that_cannot_be_met_leaves_no_files(
    changes: dict[str, Any], error: type[Exception], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_artifact(dataclasses.replace(ExportRequest(model=tiny_model, out=tmp_path / "out"), **changes))
    assert not list(tmp_path.iterdir())


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def another_mlp_size(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=96)


@pytest.mark.parametrize(("damage", "message"), [(drop_tensor, "lack the tensor"), (another_mlp_size, "shape mismatch")])
def test_weights_of_another_model_are_refused(damage: Callable[[Path], None], message: str, tiny_copy: Path, tmp_path: Path) -> None:
    damage(tiny_copy)
    with pytest.raises(CheckpointError, match=message):
        export_artifact(ExportRequest(model=tiny_copy, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def swap_two_layers(model: ir.Model) -> None:
    weights = model.graph.initializers
    names = [f"model.layers.{n}.mlp.down_proj.weight_t" for n in (0, 1)]
    weights[names[0]].const_value, weights[names[1]].const_value = weights[names[1]].const_value, weights[names[0]].const_value


def scaled_a_little(model: ir.Model) -> None:
    value = model.graph.initializers["model.norm.weight"]
    assert value.const_value is not None
    value.const_value = ir.tensor((value.const_value.numpy() * 1.001).astype(np.float32), name="model.norm.weight")


def least_probable_tokens(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "TopK").attributes.add(ir.AttrInt64("largest", 0))


@pytest.mark.parametrize(
    ("break_graph", "message"),
    [
        (swap_two_layers, "not the checkpoint's model: logits differ by"),
        (scaled_a_little, "not the checkpoint's model: logits differ by"),
        (least_probable_tokens, "top tokens or confidence do not agree with its logits"),
    ],
)
def test_the_gate_refuses_a_wrong_graph_and_leaves_no_artifact(
    break_graph: Callable[[ir.Model], None], message: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: ir.Model, plan: LoweringPlan) -> ir.Model:
        lowered = lower_verify(model, plan)
        break_graph(lowered)
        return lowered

    monkeypatch.setattr(assemble, "lower_verify", broken)
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(UnsupportedModelError, match=message):
        export_artifact(ExportRequest(model=tiny_model, out=tmp_path / "out", skip=SKIP))
    assert not (tmp_path / "out").exists()
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size > 0]


def test_the_gate_opens_no_longer_context_than_its_texts_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[int] = []

    def opened(artifact: Artifact, *, max_context: int, max_sequences: int) -> Engine:
        contexts.append(max_context)
        return open_to_check(artifact, max_context=max_context, max_sequences=max_sequences)

    monkeypatch.setattr(gate, "open_to_check", opened)
    model = make_llama(tmp_path / "model", max_position_embeddings=131_072)
    artifact = export_artifact(ExportRequest(model=model, out=tmp_path / "out", skip=SKIP))
    assert artifact.manifest.max_context == 131_072
    assert max(contexts) == GATE_CONTEXT
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert artifact.manifest.files[WEIGHTS].size < 1.5 * weights  # no table of 131,072 positions
    with load(artifact.folder, max_context=100_000, max_sequences=1) as engine:
        assert len(engine.generate([1, 2, 3], GenerationConfig(max_new_tokens=4, ignore_eos=True)).token_ids) == 4


def test_force_replaces_an_artifact_and_an_interrupt_keeps_the_old_one(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_artifact(ExportRequest(model=tiny_model, out=out, skip=SKIP))
    before = (out / MANIFEST).read_bytes()
    with pytest.raises(ArtifactError, match="exists"):
        export_artifact(ExportRequest(model=tiny_model, out=out))

    def interrupt(step: str) -> None:
        if step == "comparing with the checkpoint":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_artifact(ExportRequest(model=tiny_model, out=out, force=True, progress=interrupt))
    assert (out / MANIFEST).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    export_artifact(ExportRequest(model=tiny_model, out=out, force=True, skip=SkipSpec(mlp=(1,))))
    assert read_artifact(out).manifest.drafts[0].skip == SkipSet(mlp=(1,))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_killed_export_keeps_the_old_artifact_and_the_next_one_cleans_up(tiny_model: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_artifact, out)
    code = (
        "import os, signal, sys; from pathlib import Path; from sstool.pipelines.export import ExportRequest, export_artifact\n"
        "def kill(step):\n"
        "    if step == 'publishing': os.kill(os.getpid(), signal.SIGKILL)\n"
        "export_artifact(ExportRequest(model=sys.argv[1], out=Path(sys.argv[2]), force=True, progress=kill))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tiny_model), str(out)], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    check_digests(read_artifact(out))
    assert read_artifact(out).manifest.drafts[0].skip == SKIP.skip()
    export_artifact(ExportRequest(model=tiny_model, out=out, force=True))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert read_artifact(out).manifest.drafts[0].skip == default_skip_set(LAYERS)


def test_a_full_disk_is_reported_and_leaves_no_files(tiny_model: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: str) -> None:
        if step == "building the graphs":
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))

    try:
        with pytest.raises(ArtifactError, match="no room on the disk"):
            export_artifact(ExportRequest(model=tiny_model, out=tmp_path / "out", progress=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def exported_text_files(model: Path, tmp_path: Path) -> Path:
    return export_artifact(ExportRequest(model=model, out=tmp_path / "out", skip=SKIP)).folder


def test_a_chat_template_in_the_tokenizer_config_gets_its_own_file(tiny_copy: Path, tmp_path: Path) -> None:
    edit_json(tiny_copy / "tokenizer_config.json", chat_template="{{ messages }}")
    assert (exported_text_files(tiny_copy, tmp_path) / "chat_template.jinja").read_text() == "{{ messages }}"


def test_the_default_of_several_chat_templates_is_exported(tiny_copy: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit_json(tiny_copy / "tokenizer_config.json", chat_template=named)
    assert (exported_text_files(tiny_copy, tmp_path) / "chat_template.jinja").read_text() == "plain"


def test_a_chat_template_file_is_copied(tiny_copy: Path, tmp_path: Path) -> None:
    (tiny_copy / "chat_template.jinja").write_text("{{ messages }}\n")
    assert (exported_text_files(tiny_copy, tmp_path) / "chat_template.jinja").read_text() == "{{ messages }}\n"


def test_no_chat_template_means_no_file(tiny_artifact: Path) -> None:
    assert not (tiny_artifact / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("generation", "expected"), [(None, {2}), ({"temperature": 0.5}, {2}), ({"eos_token_id": [3, 4]}, {3, 4}), ({"eos_token_id": 5}, {5})]
)
def test_end_of_sequence_tokens_are_always_exported(
    generation: dict[str, Any] | None, expected: set[int], tiny_copy: Path, tmp_path: Path
) -> None:
    path = tiny_copy / "generation_config.json"
    path.unlink()
    if generation is not None:
        path.write_text(json.dumps(generation))
    folder = exported_text_files(tiny_copy, tmp_path)
    assert read_generation_config(folder / "generation_config.json").eos_token_ids == expected


def test_a_sampling_default_that_cannot_be_used_is_ignored_by_name(
    tiny_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(tiny_copy / "generation_config.json", temperature=-1.0, do_sample=True, max_new_tokens=0)
    export_artifact(ExportRequest(model=tiny_copy, out=tmp_path / "out"))
    expected = "generation_config.json has settings that cannot be followed; they are ignored: max_new_tokens=0, temperature=-1.0"
    assert expected in caplog.text


def test_an_end_of_sequence_token_that_cannot_be_used_is_refused(tiny_copy: Path, tmp_path: Path) -> None:
    edit_json(tiny_copy / "generation_config.json", eos_token_id="two")
    with pytest.raises(CheckpointError, match=r"generation_config.json.*eos_token_id"):
        export_artifact(ExportRequest(model=tiny_copy, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_chat_template_that_is_not_utf_8_is_refused(tiny_copy: Path, tmp_path: Path) -> None:
    (tiny_copy / "chat_template.jinja").write_bytes(b"caf\xe9 {{ messages }}")
    with pytest.raises(CheckpointError, match=r"chat_template.jinja cannot be read") as caught:
        export_artifact(ExportRequest(model=tiny_copy, out=tmp_path / "out"))
    assert "UTF-8" in caught.value.hint


def test_the_current_folder_can_be_replaced(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    artifact = export_artifact(ExportRequest(model=tiny_model, out=Path(), force=True, skip=SKIP))
    assert artifact.folder == tmp_path / "here"
    assert (tmp_path / "here" / MANIFEST).exists()


def test_nothing_is_written_to_stdout_or_stderr(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_artifact(ExportRequest(model=tiny_model, out=tmp_path / "out", skip=SKIP))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_checkpoint_of_symbolic_links_is_exported_like_its_files(tiny_model: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    """The hub's cache has such checkpoints: the files in `snapshots/<revision>/` are links to `blobs/`."""
    snapshot = tmp_path / "snapshots" / "revision"
    snapshot.mkdir(parents=True)
    for path in tiny_model.iterdir():
        (snapshot / path.name).symlink_to(path)
    artifact = export_artifact(ExportRequest(model=snapshot, out=tmp_path / "out", skip=SKIP))
    assert artifact.path("weights.bin").read_bytes() == (tiny_artifact / "weights.bin").read_bytes()
    assert [p.name for p in (tmp_path / "snapshots").iterdir()] == ["revision"]


def test_stories260k_has_parity_and_its_checkpoint_s_context_and_weights(shared_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = shared_model("stories260k")
    artifact = export_artifact(ExportRequest(model=model, out=tmp_path / "out"))
    assert artifact.manifest.gate["parity"]["max_relative"] <= TIGHT
    assert artifact.manifest.max_context == 512
    assert artifact.path("weights.bin").stat().st_size == artifact.manifest.model.weight_bytes
