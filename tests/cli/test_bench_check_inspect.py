"""`bench`, `check` and `inspect` print the documented JSON, and the same facts as text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ssruntime.artifact import read_artifact
from sstool.cli.inspect import skip_strip
from tests.cli.conftest import Command

QUICK = ("--threads", "1", "--max-new-tokens", "6", "--max-context", "64", "--repeat", "2", "--seed", "1")
RUN = {
    "mode", "tokens_per_second", "ratio_to_plain", "ratio_interval_95", "acceptance_rate", "tokens_per_round", "host_overhead",
    "prefill_s", "identical", "prompts", "refused",
}  # fmt: skip


def test_bench_json_has_the_documented_fields(sstool: Command, demo_artifact: Path, prompts_file: Path) -> None:
    outcome = sstool("bench", demo_artifact, "--prompts", prompts_file, "--json", *QUICK)
    assert outcome.code == 0
    [report] = outcome.lines()
    assert set(report) == {"environment", "settings", "runs", "per_prompt", "peers"}
    assert [run["mode"] for run in report["runs"]] == ["plain", "auto"]
    for run in report["runs"]:
        assert set(run) == RUN
        assert (run["prompts"], run["refused"]) == (4, 2)
    assert report["runs"][0]["identical"] is None
    assert sum(report["runs"][1]["identical"].values()) == 4
    assert {tuple(sorted(row)) for row in report["per_prompt"]} == {("decode_s", "id", "identical", "mode", "repeat", "tokens")}
    assert len(report["per_prompt"]) == 8


def test_bench_with_the_kernel_for_a_single_row_gives_the_same_tokens(sstool: Command, demo_artifact: Path, prompts_file: Path) -> None:
    exact, fast = (
        sstool("bench", demo_artifact, "--prompts", prompts_file, "--json", *flag, *QUICK).lines()[0] for flag in ((), ("--no-bit-exact",))
    )
    tokens = [[(row["id"], row["mode"], row["tokens"]) for row in report["per_prompt"]] for report in (exact, fast)]
    assert tokens[0] == tokens[1]
    assert fast["runs"][1]["identical"]["no"] == 0


@pytest.mark.parametrize("flag", ["--mode", "--modes"])
def test_bench_of_one_mode_has_no_comparison(sstool: Command, demo_artifact: Path, prompts_file: Path, flag: str) -> None:
    [report] = sstool("bench", demo_artifact, "--prompts", prompts_file, "--json", flag, "speculative", *QUICK).lines()
    [run] = report["runs"]
    assert (run["mode"], run["ratio_to_plain"], run["identical"]) == ("speculative", None, None)


def test_bench_as_text_is_a_table(sstool: Command, demo_artifact: Path, prompts_file: Path) -> None:
    outcome = sstool("bench", demo_artifact, "--prompts", prompts_file, *QUICK)
    assert outcome.code == 0
    for text in ("plain", "auto", "tokens/s", "acceptance rate", "tokens per round", "identical", "4 of 4", "2 refused"):
        assert text in outcome.out
    assert "empty" in outcome.err


def test_check_json_has_the_status_of_each_part(sstool: Command, demo_artifact: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "one.jsonl"
    prompts.write_text('{"prompt": "import os"}\n', encoding="utf-8")
    outcome = sstool("check", demo_artifact, "--prompts", prompts, "--json")
    assert outcome.code == 0
    [report] = outcome.lines()
    assert report["ok"]
    assert report["digests"]["status"] == "passed"
    assert report["parity"]["status"] == "skipped"
    assert report["bits"]["status"] == "passed"
    assert report["bits"]["equal"]
    assert report["losslessness"]["status"] == "passed"
    assert report["losslessness"]["yes"] == report["losslessness"]["comparisons"] > 0


def test_check_as_text_shows_what_failed_and_what_was_skipped(sstool: Command, demo_copy: Path) -> None:
    path = demo_copy / "tokenizer.json"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    outcome = sstool("check", demo_copy)
    assert outcome.code == 1
    assert "digests       failed: " in outcome.out
    assert "tokenizer.json does not match its digest" in outcome.out
    for part in ("parity", "losslessness", "memory"):
        assert f"{part:<14}skipped: " in outcome.out


def test_inspect_json_has_the_manifest_s_facts(sstool: Command, demo_artifact: Path) -> None:
    [found] = sstool("inspect", demo_artifact, "--json").lines()
    manifest = read_artifact(demo_artifact).manifest
    assert found["model"]["num_layers"] == manifest.model.num_layers
    assert found["kv"]["bytes_per_token"] == 2 * 16 * 2 * 64 * 4
    assert found["kv"]["bytes_at_max_context"] == 2 * 16 * 2 * 64 * 4 * 2048
    assert found["packing"] == "shared"
    assert found["exactness"] == "bits"
    assert found["drafts"][0]["skip"]["attention"] == list(manifest.drafts[0].skip.attention)
    assert set(found["files"]) == set(manifest.files)
    assert found["gate"] == manifest.gate
    assert found["tools"] == manifest.tools


def test_inspect_as_text_shows_the_same_facts(sstool: Command, demo_artifact: Path) -> None:
    outcome = sstool("inspect", demo_artifact)
    assert outcome.code == 0
    [draft] = read_artifact(demo_artifact).manifest.drafts
    for text in (
        "llama",
        "16 layers",
        "packing",
        "shared",
        "a token",
        "weights.bin",
        "skips",
        "".join("." if layer in draft.skip.attention else "#" for layer in range(16)),
        "parity",
        "transformers",
    ):
        assert text in outcome.out


def test_inspect_packs_nothing(sstool: Command, demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "cache"))
    assert sstool("inspect", demo_artifact, "--json").lines()[0]["packing"] == "shared (packed by the first load)"
    assert list((tmp_path / "cache").iterdir()) == []


def test_inspect_says_why_packing_is_private(sstool: Command, demo_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_DIR", "/dev/null/nowhere")
    outcome = sstool("inspect", demo_artifact, "--json")
    assert outcome.code == 0
    assert outcome.lines()[0]["packing"].startswith("private (")
    assert not outcome.err


def test_a_skip_strip_has_one_mark_per_layer() -> None:
    assert skip_strip((0, 2), 4) == ".#.#"
    assert skip_strip((), 3) == "###"


def test_inspect_works_without_onnxruntime(demo_artifact: Path) -> None:
    code = f"""
import sys; sys.modules["onnxruntime"] = None
from sstool.cli.main import run
sys.exit(run(["inspect", {str(demo_artifact)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unknown (target ort-cpu: onnxruntime cannot be imported") == 2
