"""What a check finds, and that an interrupted one resumes where it stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssruntime import ArtifactError, CheckpointError, PromptError
from ssruntime.artifact import MANIFEST, VERIFY_GRAPH, WEIGHTS
from sstool.check import CheckOptions, CheckReport, LosslessnessReport, PromptFile, built_in_prompts, losslessness, run_check
from sstool.check.journal import CaseOutcome, Journal
from sstool.check.plan import plan_check
from sstool.prompts import PromptRecord
from sstool.validation import bits
from sstool.version import code_digest
from tests.measure.conftest import CONTEXT, Script, successor_table

MakeArtifact = Callable[[Script], Path]


def good_script() -> Script:
    return Script(verify=successor_table(4.0), draft=successor_table(3.0))


def prompts(*texts: str, name: str = "file") -> PromptFile:
    return PromptFile(name=name, prompts=[PromptRecord(id=f"p{i}", prompt=t, index=i) for i, t in enumerate(texts)])


@pytest.fixture(autouse=True)
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns the memory measurement off, as on a system that cannot measure it.

    It starts processes and takes seconds; `test_memory.py` tests it.
    """
    monkeypatch.setattr("sstool.check.run.can_measure", lambda: False)


def check(folder: Path, *files: PromptFile, full: bool = False) -> CheckReport:
    return run_check(folder, CheckOptions(full=full, threads=1), prompt_files=files)


def test_a_sound_artifact_passes(make_artifact: MakeArtifact) -> None:
    report = check(make_artifact(good_script()))
    assert report.ok
    data = json.loads(json.dumps(report.to_json()))
    assert list(data) == ["ok", "full", "environment", "digests", "parity", "bits", "losslessness", "memory"]
    assert {k: data[k]["status"] for k in ("digests", "parity", "bits", "losslessness", "memory")} == {
        "digests": "passed", "parity": "skipped", "bits": "passed", "losslessness": "passed", "memory": "not measured",
    }  # fmt: skip
    found = data["losslessness"]
    assert found["comparisons"] == found["yes"] > 0
    assert found["first_difference"] is None
    assert found["near_ties_per_10k"] == 0.0
    assert found["bits_equal"]
    assert found["logit_rows"] == found["tokens"]
    assert found["logit_rows_differing"] == 0


@pytest.mark.parametrize("name", [VERIFY_GRAPH, WEIGHTS, "tokenizer.json"])
def test_one_flipped_byte_is_found(make_artifact: MakeArtifact, name: str) -> None:
    folder = make_artifact(good_script())
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    report = check(folder)
    assert not report.ok
    assert report.digests.status == "failed"
    assert name in (report.digests.reason or "")
    assert report.losslessness.status == "skipped"


def test_a_truncated_manifest_is_an_error(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(good_script())
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text(encoding="utf-8")[:-30], encoding="utf-8")
    with pytest.raises(ArtifactError):
        check(folder)


def test_a_query_length_that_computes_other_logits_fails(make_artifact: MakeArtifact) -> None:
    script = Script(verify=successor_table(), draft=successor_table())
    script.bump[9, 25] = 50.0
    report = check(make_artifact(script), prompts("t3", "t20"))
    assert not report.ok
    found = report.losslessness.details
    assert found["no"] >= 4  # every text contains t9, and two settings always verify it in passes of several tokens
    assert found["comparisons"] == 10
    first = found["first_difference"]
    assert isinstance(first, dict)
    assert (first["id"], first["verdict"], first["plain_token"], first["run_token"]) == ("p0", "no", 10, 25)


@pytest.fixture
def short_bit_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bit test does not compare batches, and so reaches no row after token 9."""
    monkeypatch.setattr(bits, "compare_ragged", lambda *_, **__: None)


@pytest.mark.usefixtures("short_bit_test")
def test_a_near_tie_fails_where_the_bits_are_equal(make_artifact: MakeArtifact) -> None:
    script = Script(verify=successor_table(), draft=successor_table())
    script.verify[9, 25] = script.verify[9, 10] - np.float32(1e-5)
    script.bump[9, 25] = 2e-5  # in a row that the bit test does not reach
    report = check(make_artifact(script), prompts("t3"))
    assert report.bits.status == "passed"
    found = report.losslessness.details["first_difference"]
    assert isinstance(found, dict)
    assert found["verdict"] == "no"
    assert "the same bits" in found["reason"]


@pytest.mark.usefixtures("short_bit_test")
def test_logits_whose_bits_differ_fail_where_the_bits_are_equal(make_artifact: MakeArtifact) -> None:
    script = Script(verify=successor_table(), draft=successor_table())
    script.bump[9, 25] = 1e-5  # the tokens are the same
    report = check(make_artifact(script), prompts("t3"))
    assert report.bits.status == "passed"
    assert report.losslessness.details["no"] == 0
    assert "rows of logits differ in bits from plain decoding" in (report.losslessness.reason or "")


def test_more_near_ties_than_one_in_ten_thousand_tokens_fail(make_artifact: MakeArtifact) -> None:
    script = Script(verify=successor_table(), draft=successor_table())
    script.verify[9, 25] = script.verify[9, 10] - np.float32(1e-5)
    script.bump[9, 25] = 2e-5
    script.bump[:, 0] = 1e-5  # in every row, so that the bit test fails
    report = check(make_artifact(script), prompts("t3", "t5", "t7"))
    assert not report.ok
    assert report.bits.status == "reported"
    assert "near ties are possible (query length 2: " in (report.bits.reason or "")
    assert report.losslessness.details["no"] == 0
    assert "near ties" in (report.losslessness.reason or "")


def test_differences_beyond_rounding_are_not_called_near_ties(make_artifact: MakeArtifact) -> None:
    script = Script(verify=successor_table(), draft=successor_table())
    script.bump[:, 0] = 0.5  # wider passes compute something else
    report = check(make_artifact(script), prompts("t3"))
    assert not report.ok
    assert report.bits.status == "failed"
    assert "compute different things" in (report.bits.reason or "")


@pytest.mark.parametrize(("near_ties", "allowed", "fails"), [(3, 1.0, True), (3, 30.0, False), (4, 30.0, True)])
def test_more_near_ties_are_allowed_where_their_tolerance_is_larger(near_ties: int, allowed: float, fails: bool) -> None:
    report = LosslessnessReport(
        comparisons=1, yes=0, near_tie=1, no=0, tokens=1000, near_ties=near_ties, logit_rows=0,
        logit_rows_differing=0, bits_equal=False, refused=0, resumed=0, first_difference=None, near_ties_allowed_per_10k=allowed,
    )  # fmt: skip
    assert (report.reason is not None) == fails


@pytest.mark.parametrize(("near_ties", "tokens", "fails"), [(1, 500, False), (2, 500, True), (2, 20_000, False), (3, 29_999, True)])
def test_one_near_tie_in_ten_thousand_tokens_is_allowed(near_ties: int, tokens: int, fails: bool) -> None:
    report = LosslessnessReport(
        comparisons=9, yes=9 - near_ties, near_tie=near_ties, no=0, tokens=tokens, near_ties=near_ties, logit_rows=0,
        logit_rows_differing=0, bits_equal=False, refused=0, resumed=0, first_difference=None,
    )  # fmt: skip
    assert (report.reason is not None) is fails


def test_losslessness_is_skipped_for_an_artifact_without_a_draft(make_artifact: MakeArtifact) -> None:
    report = check(make_artifact(Script(verify=successor_table(), draft=None)))
    assert report.ok
    assert report.losslessness.status == "skipped"


def test_refused_prompts_are_counted(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(good_script())
    long = " ".join(["t1"] * CONTEXT)
    report = check(folder, prompts(long, "t3", ""))
    assert report.ok
    assert report.losslessness.details["refused"] == 2
    assert not check(folder, prompts(long)).ok  # nothing was compared


def test_two_prompts_files_with_the_same_name_are_refused(make_artifact: MakeArtifact) -> None:
    with pytest.raises(PromptError):
        check(make_artifact(good_script()), prompts("t1"), prompts("t2"))


def test_the_full_plan_has_the_documented_comparisons() -> None:
    files = [prompts(*["t1"] * 20, name="a"), prompts(*["t2"] * 5, name="b")]
    plan = plan_check(files, full=True)
    assert plan.num_tokens == 64
    grid = {(t.file, t.prompt.index, c.name) for t in plan.tasks for c in t.cases if c.exit and c.max_draft and c.max_draft <= 12}
    assert len(grid) == (8 + 5) * (12 * 3 + 2) * 2
    named = {(t.file, t.prompt.index, c.name) for t in plan.tasks for c in t.cases} - grid
    assert len(named) == (20 + 5) * 3 + (8 + 5) * 2  # the named settings, and n-grams greedily and sampled
    assert plan.num_comparisons == len(grid) + len(named)
    once = [(t.file, t.prompt.index, t.sampling) for t in plan.tasks]
    assert len(set(once)) == len(once)  # mode `plain` decodes each prompt once per kind of sampling


def test_built_in_prompts_are_distinct_texts() -> None:
    texts = [p.prompt for p in built_in_prompts().prompts]
    assert len(set(texts)) == len(texts) == 8
    assert not any(t.endswith(("\n", " ")) for t in texts)


def journals(cache: Path) -> list[Path]:
    return list((cache / "check").glob("*")) if (cache / "check").exists() else []


def interrupt_after(steps: int) -> Callable[[str, int, int, str], None]:
    def tell(part: str, done: int, _total: int, _what: str) -> None:
        if part == "losslessness" and done == steps:
            raise KeyboardInterrupt

    return tell


def test_an_interrupted_full_check_resumes_where_it_stopped(make_artifact: MakeArtifact, own_cache: Path) -> None:
    folder, file = make_artifact(good_script()), prompts("t1 t2", "t9")
    with pytest.raises(KeyboardInterrupt):
        run_check(folder, CheckOptions(full=True, threads=1), prompt_files=[file], on_progress=interrupt_after(50))
    (journal,) = journals(own_cache)
    with journal.open("a", encoding="utf-8") as handle:
        handle.write('{"unit": "other", "verdict": "no", "tokens": 3, "near_ties": 0, "difference": {"index": 1}}\n')  # of another version
        handle.write('{"unit": "file:0:gre')  # a line that a kill cut short
    report = check(folder, file, full=True)
    assert report.ok
    assert report.losslessness.details["resumed"] == 50
    assert report.losslessness.details["comparisons"] == 2 * (3 + (12 * 3 + 2) * 2 + 2)
    assert journals(own_cache) == []


def test_a_check_resumes_only_for_the_same_artifact_and_prompts(make_artifact: MakeArtifact, own_cache: Path) -> None:
    folder = make_artifact(good_script())
    with pytest.raises(KeyboardInterrupt):
        run_check(folder, CheckOptions(full=True, threads=1), prompt_files=[prompts("t1")], on_progress=interrupt_after(9))
    assert check(folder, prompts("t2"), full=True).losslessness.details["resumed"] == 0
    other = make_artifact(Script(verify=successor_table(5.0), draft=successor_table(3.0)))
    assert check(other, prompts("t1"), full=True).losslessness.details["resumed"] == 0
    assert len(journals(own_cache)) == 1
    assert check(folder, prompts("t1"), full=True).losslessness.details["resumed"] == 9


def test_a_check_does_not_resume_what_other_code_found(
    make_artifact: MakeArtifact, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_artifact(good_script())
    monkeypatch.setattr(losslessness, "code_digest", lambda: "older")
    with pytest.raises(KeyboardInterrupt):
        run_check(folder, CheckOptions(full=True, threads=1), prompt_files=[prompts("t1")], on_progress=interrupt_after(9))
    assert len(journals(own_cache)) == 1
    monkeypatch.setattr(losslessness, "code_digest", code_digest)
    assert check(folder, prompts("t1"), full=True).losslessness.details["resumed"] == 0


def test_damaged_packed_weights_are_found(make_artifact: MakeArtifact, own_cache: Path) -> None:
    folder = make_artifact(good_script())
    assert check(folder, prompts("t1")).ok
    (packed,) = own_cache.glob("*/packed.bin")
    status, data = packed.stat(), bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 1
    packed.write_bytes(data)
    os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = check(folder, prompts("t1"))
    assert report.digests.status == "failed"
    assert f"the packed weights in {packed.parent} are damaged; remove that folder" in (report.digests.reason or "")
    shutil.rmtree(packed.parent)
    assert check(folder, prompts("t1")).ok


def test_a_cache_that_cannot_be_written_only_prevents_resuming(make_artifact: MakeArtifact, own_cache: Path) -> None:
    own_cache.mkdir(parents=True)
    (own_cache / "check").write_text("in the way", encoding="utf-8")
    report = check(make_artifact(good_script()), prompts("t1"), full=True)
    assert report.losslessness.status == "passed"


@pytest.mark.parametrize(
    "damage", [b'{"unit": "b", "verdict"', b"\xff\xfe\n", b"[]\n", b'{"unit": "b", "verdict": "yes"}\n', b'{"unit": "b"', b"\n\n"]
)
def test_damaged_lines_of_a_journal_are_dropped(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    outcome = CaseOutcome(verdict="yes", tokens=4, near_ties=0, difference=None, logit_rows=4, logit_rows_differing=0)
    first = Journal(path)
    first.add("a", outcome)
    first.close(done=False)
    with path.open("ab") as handle:
        handle.write(damage)
    second = Journal(path)
    assert (second.get("a"), second.get("b")) == (outcome, None)
    second.add("c", outcome)
    second.close(done=False)
    third = Journal(path)
    assert (third.get("a"), third.get("b"), third.get("c")) == (outcome, None, outcome)
    third.close(done=True)
    assert not path.exists()


def test_parity_is_measured_against_the_named_checkpoint(demo_artifact: Path, demo_model: Path) -> None:
    pytest.importorskip("torch", reason="parity is measured with torch")
    report = run_check(demo_artifact, CheckOptions(model=str(demo_model)), prompt_files=[prompts("def area(radius):")])
    assert report.ok
    assert report.parity.status == "passed"
    assert isinstance(report.parity.details["max_relative"], float)


def test_a_missing_checkpoint_is_an_error_before_anything_runs(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="parity is measured with torch")
    seen: list[str] = []
    with pytest.raises(CheckpointError):
        run_check(
            make_artifact(good_script()),
            CheckOptions(model=str(tmp_path / "absent")),
            on_progress=lambda part, _done, _total, _what: seen.append(part),
        )
    assert not seen
