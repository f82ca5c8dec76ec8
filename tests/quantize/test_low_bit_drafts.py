"""Drafts with parts in int4: what they compute and cost, and that texts stay those of plain decoding."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime import GenerationConfig, load
from ssruntime.artifact import DRAFT_WEIGHTS, Artifact, LowBitSet, read_artifact
from ssruntime.backends.ort import packing
from ssruntime.errors import ConfigError
from sstool.cli.main import run
from sstool.graph.lower import lower_draft
from sstool.graph.passes.block_products import OPERATOR, unpacked
from sstool.graph.products import product_groups, products_of
from sstool.graph.sublayers import Sublayer
from sstool.pipelines.choose_draft import candidates, choose_low_bits
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.pipelines.replace_draft import write_other_draft
from sstool.quantize.draft_memory import DraftMemory
from sstool.quantize.low_bit_draft import bytes_of_parts, with_low_bits
from sstool.skip_set import SkipSpec

PARTS = LowBitSet(attention=(0, 1, 2), mlp=(0, 7, 15), head=True)
SPEC = SkipSpec(attention=(3, 5), mlp=(1, 2), int4=PARTS)


@pytest.fixture(scope="module")
def low_bit(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo model whose draft has some parts in int4. Read only."""
    return export_artifact(ExportRequest(model=demo_model, out=tmp_path_factory.mktemp("low") / "demo", skip=SPEC))


def test_the_named_parts_and_no_others_are_in_int4(low_bit: Artifact, tmp_path: Path) -> None:
    shutil.copytree(low_bit.folder, tmp_path / "copy")  # onnx-ir reads no file that has several names
    draft = ir.load(tmp_path / "copy" / "draft.onnx")
    integer = {node.name: node for node in draft.graph if node.op_type == OPERATOR}
    base = products_of(product_groups(ir.load(low_bit.base_graph()).graph))
    parts = {Sublayer(n, "attention") for n in PARTS.attention} | {Sublayer(n, "mlp") for n in PARTS.mlp} | {None}
    assert set(integer) == {product.name for product in base if product.sublayer in parts}
    for product in base:
        if product.name in integer:
            codes, scales, zeros = unpacked(integer[product.name])
            matrix = ((codes.astype(np.float32) - zeros[..., None]) * scales[..., None]).reshape(len(codes), -1).T
            exact = product.matrix()
            error = np.abs(matrix[: len(exact)] - exact)
            assert error.max() <= 0.25 * np.abs(exact).max()
            assert np.sqrt((error**2).mean()) <= 0.2 * exact.std()


def test_only_the_draft_has_the_new_weights(low_bit: Artifact, demo_artifact: Path) -> None:
    plain = read_artifact(demo_artifact).manifest
    (draft,) = low_bit.manifest.drafts
    assert (draft.int4, draft.weights) == (PARTS, (DRAFT_WEIGHTS,))
    for name in ("weights.bin", "verify.onnx", "step.onnx"):
        assert low_bit.manifest.files[name].sha256 == plain.files[name].sha256
    sizes = bytes_of_parts(ir.load(low_bit.base_graph()))
    named = [
        size for part, size in sizes.items() if part is None or part.layer in (PARTS.attention if part.kind == "attention" else PARTS.mlp)
    ]
    assert low_bit.manifest.files[DRAFT_WEIGHTS].size == pytest.approx(sum(named), rel=0.05)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("mode", ["speculative", "auto"])
def test_texts_are_those_of_plain_decoding(low_bit: Artifact, mode: str, temperature: float) -> None:
    how = GenerationConfig(temperature=temperature, seed=3, max_new_tokens=60, ignore_eos=True)
    with load(low_bit.folder) as engine:
        for prompt in ("import os", "def area(radius):", "class Stack:"):
            plain = engine.generate(prompt, dataclasses.replace(how, mode="plain"))
            other = engine.generate(prompt, dataclasses.replace(how, mode=mode, exit="fixed" if mode == "speculative" else None))
            assert other.token_ids == plain.token_ids
            assert mode == "auto" or other.stats.proposed > 0


def test_the_packed_cache_is_not_needed(low_bit: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    how = GenerationConfig(temperature=0.8, seed=1, max_new_tokens=30, mode="speculative", exit="fixed", ignore_eos=True)
    with load(low_bit.folder) as engine:
        shared = engine.generate("import os", how)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "file"))
    with load(low_bit.folder) as engine:
        assert engine.backend.packing.startswith("private")
        assert engine.generate("import os", how).token_ids == shared.token_ids


def test_its_weights_are_packed_once_and_mapped(low_bit: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path))
    how = GenerationConfig(temperature=0.8, seed=1, max_new_tokens=30, mode="speculative", exit="fixed", ignore_eos=True)

    def text() -> list[int]:
        with load(low_bit.folder) as engine:
            assert engine.backend.packing == "shared"
            return list(engine.generate("import os", how).token_ids)

    first = text()
    packed = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/packed.bin")}
    assert len(packed) == 2  # that of the shared weights, and that of the draft's own
    assert text() == first
    assert {path: path.stat().st_mtime_ns for path in packed} == packed
    own = min(packed, key=lambda path: path.stat().st_size)
    own.write_bytes(b"damaged")  # the next load makes it again
    assert text() == first
    assert own.stat().st_size > 1000
    packing.discard(low_bit)
    assert not list(tmp_path.glob("*/packed.bin"))


def test_a_draft_can_be_replaced_by_one_without_weights_of_its_own(low_bit: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in low_bit.folder.iterdir():
        (folder / path.name).hardlink_to(path)
    manifest = write_other_draft(folder, SkipSpec(mlp=(1,)), None)
    assert (manifest.drafts[0].weights, manifest.has_exact_drafts) == ((), True)
    assert not (folder / DRAFT_WEIGHTS).exists()
    assert (low_bit.folder / DRAFT_WEIGHTS).exists()
    write_other_draft(folder, SPEC, None)  # its weights are read although their file has several names
    assert read_artifact(folder).manifest.files[DRAFT_WEIGHTS] == low_bit.manifest.files[DRAFT_WEIGHTS]


def test_the_fastest_draft_within_the_memory_is_chosen(low_bit: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    from sstool.pipelines import choose_draft

    for speeds, expected in (([1.2, 1.5], 1), ([1.2, 1.21], 0), ([1.5, 1.2], 0)):
        monkeypatch.setattr(choose_draft, "_speedups", lambda engines, speeds=speeds: speeds[: len(engines)])
        chosen = choose_low_bits(low_bit.folder, SkipSpec(attention=(3,), mlp=tuple(range(1, 15))), DraftMemory.parse("5%"), lambda _: None)
        assert bool(chosen.low_bit()) == bool(expected)
    assert not [path for path in low_bit.folder.iterdir() if path.is_dir()]


def test_candidates_fit_the_memory(low_bit: Artifact) -> None:
    base = ir.load(low_bit.base_graph())
    sizes, spec = bytes_of_parts(base), SkipSpec(attention=(1,), mlp=(0, 2))
    kept = sum(size for part, size in sizes.items() if part not in {Sublayer(1, "attention"), Sublayer(0, "mlp"), Sublayer(2, "mlp")})
    assert candidates(sizes, spec, 0) == [spec]
    assert candidates({}, spec, 0) == [spec]  # a quantized model has no weights in fp32 to copy
    few = candidates(sizes, spec, max(sizes.values()))
    assert [len((*s.low_bit().attention, *s.low_bit().mlp)) + s.low_bit().head for s in few] == [0, 1]
    assert [len(candidates(sizes, spec, room)) for room in (kept, sum(sizes.values()))] == [2, 3]
    whole = candidates(sizes, spec, sum(sizes.values()))
    assert whole[1].skip() == spec.skip()
    assert whole[2].low_bit() == LowBitSet(attention=tuple(range(16)), mlp=tuple(range(16)), head=True)
    drafts = [with_low_bits(lower_draft(base, one.skip()), one.low_bit()) for one in whole]
    counts = [sum(node.op_type == OPERATOR for node in draft.graph) for draft in drafts]
    assert counts[0] == 0 < counts[1] < counts[2]


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("0%", 0), ("5%", 50), (".5 %", 5), ("2kB", 2000), ("1.5MiB", 1.5 * 2**20)])
def test_memory_is_a_fraction_or_a_size(text: str, expected: float) -> None:
    assert DraftMemory.parse(text).bytes_beside(1000) == pytest.approx(expected)
    assert bool(DraftMemory.parse(text)) == bool(expected)


@pytest.mark.parametrize("text", ["", "5", "-1%", "5TB", "9" * 400 + "GB", "much", "%", "5%%", "\u0665%"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="neither a percentage nor a size"):
        DraftMemory.parse(text)


@pytest.mark.parametrize(
    ("more", "skip_set", "message"),
    [
        (["--dtype", "int8", "--draft-memory", "5%"], {}, "int4 draft weights are not available for ort-cpu in int8"),
        (["--target", "ort-cuda"], {"int4": {"head": True}}, "int4 draft weights are not available for ort-cuda"),
        (["--draft-memory", "5%"], {"int4": {"mlp": [3]}}, "names its parts in int4"),
        (["--draft-memory", "5"], {}, "neither a percentage nor a size"),
        ([], {"mlp": [3], "int4": {"mlp": [3]}}, "mlp layer 3 is skipped, so it has no weights in int4"),
        ([], {"int4": {"mlp": [99]}}, "int4 mlp layer 99 does not exist"),
        ([], {"int4": {"mpl": [1]}}, "unknown key 'mpl'"),
        ([], {"int4": True}, "expected an object"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    more: list[str], skip_set: dict[str, object], message: str, capfd: pytest.CaptureFixture[str], demo_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"attention": [1], **skip_set}))
    code = run(["export", "--model", str(demo_model), "--out", str(tmp_path / "out"), "--skip-set", str(path), *more])
    found = capfd.readouterr().err
    assert code == 1
    assert message in found
    assert len(found.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
