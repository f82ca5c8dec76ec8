"""`sstool search` and the search in `sstool export` deploy what they find; wrong input leaves no files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ssruntime.artifact import read_artifact
from sstool.cli import main
from tests.cli.conftest import Command
from tests.toolchain.tiny_llama import make_llama

QUICK = ("--trials", "4", "--threads", "1")
RECIPE = "search: {sampled_tokens: 12, greedy_tokens: 8, finalists: 1}\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a random checkpoint of three layers, which the tests only read."""
    return make_llama(tmp_path_factory.mktemp("search") / "model", num_hidden_layers=3)


@pytest.fixture
def given(tmp_path: Path) -> tuple[str | Path, ...]:
    """Returns options for a search that takes about a second."""
    prompts, recipe = tmp_path / "prompts.jsonl", tmp_path / "recipe.yaml"
    prompts.write_text('{"prompt": "w1 w2 w3"}\n{"prompt": "w4 w5"}\n', encoding="utf-8")
    recipe.write_text(RECIPE, encoding="utf-8")
    return ("--recipe", recipe, "--calibration", prompts, *QUICK)


def fails(sstool: Command, *args: str | Path, expected: str, code: int = main.EXIT_FAILED) -> None:
    outcome = sstool(*args)
    assert (outcome.code, outcome.out) == (code, "")
    [line] = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


def test_a_search_of_a_checkpoint_gives_a_skip_set_that_export_accepts(
    sstool: Command, model: Path, tmp_path: Path, given: tuple[str | Path, ...]
) -> None:
    out = tmp_path / "found"
    outcome = sstool("search", "--model", model, "--out", out, *given)
    assert outcome.code == 0, outcome.err
    assert "4 trials in" in outcome.out
    assert {p.name for p in out.iterdir()} == {"skip_set.json", "trials.jsonl", "latency.json", "report.html"}
    assert not (tmp_path / "found.search").exists()
    fails(sstool, "search", "--model", model, "--out", out, *given, expected=f"{out} already exists")
    assert sstool("search", "--model", model, "--out", out, "--force", *given).code == 0

    artifact = tmp_path / "artifact"
    exported = sstool("export", "--model", model, "--out", artifact, "--skip-set", out / "skip_set.json")
    assert exported.code == 0, exported.err
    spec = json.loads((out / "skip_set.json").read_text())
    [draft] = read_artifact(artifact).manifest.drafts
    assert (list(draft.skip.attention), list(draft.skip.mlp)) == (spec["attention"], spec["mlp"])
    assert draft.stopping is None
    assert draft.calibration is not None


def test_a_search_of_an_artifact_deploys_the_draft_that_it_found(
    sstool: Command, model: Path, tmp_path: Path, given: tuple[str | Path, ...]
) -> None:
    artifact = tmp_path / "artifact"
    assert sstool("export", "--model", model, "--out", artifact, "--no-search").code == 0
    before = read_artifact(artifact).manifest
    assert before.tuning is None
    (artifact / "NOTES.md").write_text("mine", encoding="utf-8")
    (artifact / "eval").mkdir()
    (artifact / "eval" / "r.json").write_text("1", encoding="utf-8")
    outcome = sstool("search", "--artifact", artifact, *given)
    assert outcome.code == 0, outcome.err
    after = read_artifact(artifact).manifest
    assert after.tuning is not None
    assert after.tuning.trials == 4
    assert (artifact / "NOTES.md").read_text(encoding="utf-8") == "mine"
    assert (artifact / "eval" / "r.json").read_text(encoding="utf-8") == "1"
    of_draft = {"draft.onnx", "draft.bin"}  # the winner may have weights of its own
    assert [(n, f) for n, f in after.files.items() if n not in of_draft] == [(n, f) for n, f in before.files.items() if n not in of_draft]
    assert ("draft.bin" in after.files) == bool(after.drafts[0].int4)
    assert {p.name for p in (artifact / "search").iterdir()} == {"trials.jsonl", "latency.json", "report.html"}
    assert sstool("check", artifact).code == 0
    shown = sstool("inspect", artifact)
    assert "tuning" in shown.out
    assert json.loads(sstool("inspect", artifact, "--json").out)["tuning"]["trials"] == 4
    # The artifact now has a latency table, which is used again, and its draft is the first candidate.
    again = sstool("search", "--artifact", artifact, "--out", tmp_path / "again", *given)
    assert again.code == 0, again.err
    assert (tmp_path / "again" / "latency.json").read_bytes() == (artifact / "search" / "latency.json").read_bytes()
    first = json.loads((tmp_path / "again" / "trials.jsonl").read_text().splitlines()[1])
    assert first["source"] == "earlier"
    assert sstool("report", artifact).code == 0


def test_export_searches_by_default(sstool: Command, model: Path, tmp_path: Path, given: tuple[str | Path, ...]) -> None:
    outcome = sstool("export", "--model", model, "--out", tmp_path / "artifact", *given)
    assert outcome.code == 0, outcome.err
    manifest = read_artifact(tmp_path / "artifact").manifest
    assert manifest.tuning is not None
    assert manifest.tuning.remark in outcome.out
    assert manifest.gate["parity"]["passed"]
    assert not (tmp_path / "artifact.search").exists()
    [draft] = manifest.drafts
    assert draft.stopping is None
    assert draft.calibration is not None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "Missing option '--model' or '--artifact'"),
        (("--model", "m"), "Missing option '--out'"),
        (("--model", "m", "--artifact", "a"), "exclude each other"),
    ],
)
def test_wrong_usage_exits_2(sstool: Command, args: tuple[str, ...], expected: str) -> None:
    fails(sstool, "search", *args, expected=expected, code=main.EXIT_USAGE)


@pytest.mark.parametrize("flag", [("--trials", "3"), ("--budget", "1m"), ("--resume",), ("--threads", "1")])
def test_search_flags_without_a_search_are_wrong_usage(sstool: Command, model: Path, tmp_path: Path, flag: tuple[str, ...]) -> None:
    args = ("export", "--model", model, "--out", tmp_path / "out")
    fails(sstool, *args, "--no-search", *flag, expected=f"{flag[0]} has no meaning", code=main.EXIT_USAGE)
    fails(sstool, *args, "--skip-mlp", "1", *flag, expected=f"{flag[0]} has no meaning", code=main.EXIT_USAGE)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--trials", "0"), "trials is out of range: 0"),
        (("--budget", "soon"), "budget 'soon' is not a time"),
        (("--budget", "1ms"), "is not a time"),
        (("--budget", "0.1s"), "too small for one trial"),
        (("--seed", "-1"), "seed is out of range"),
        (("--threads", "0"), "threads is out of range"),
        (("--calibration", "none.jsonl"), "cannot read prompts from none.jsonl"),
        (("--resume",), "there is no interrupted search to resume"),
    ],
)
def test_a_wrong_setting_exits_1_and_leaves_no_files(
    sstool: Command, model: Path, tmp_path: Path, args: tuple[str, ...], expected: str
) -> None:
    out = tmp_path / "place" / "out"
    for command in ("search", "export"):
        fails(sstool, command, "--model", model, "--out", out, *args, expected=expected)
        assert not out.exists()
    assert not [p for p in tmp_path.rglob("*") if p.name != "place" and not p.is_relative_to(out.with_name("out.search"))]


def test_a_recipe_for_another_depth_is_refused_before_anything_is_built(sstool: Command, model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "deep.yaml"
    recipe.write_text("num_layers: 40\nwarm_start: {attention: [39], mlp: []}\n", encoding="utf-8")
    for command in ("search", "export"):
        fails(sstool, command, "--model", model, "--out", tmp_path / "out", "--recipe", recipe, expected="40 layers, and this one has 3")


def test_a_second_search_for_the_same_output_is_refused(
    sstool: Command, model: Path, tmp_path: Path, given: tuple[str | Path, ...]
) -> None:
    from sstool.search.log.work_folder import work_folder

    with work_folder(tmp_path / "out", resume=False):
        fails(sstool, "search", "--model", model, "--out", tmp_path / "out", *given, expected="another process is searching in")


def test_a_search_folder_with_other_files_is_not_cleared(
    sstool: Command, model: Path, tmp_path: Path, given: tuple[str | Path, ...]
) -> None:
    other = tmp_path / "out.search"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work", encoding="utf-8")
    fails(sstool, "search", "--model", model, "--out", tmp_path / "out", *given, expected="holds files that no search wrote")
    assert (other / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_search_is_not_resumed_for_another_checkpoint(
    sstool: Command, model: Path, tmp_path: Path, given: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sstool.search import run

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    other = make_llama(tmp_path / "other", num_hidden_layers=3, seed=4)
    with monkeypatch.context() as patched:
        patched.setattr(run, "time_finalists", killed)
        assert sstool("search", "--model", model, "--out", tmp_path / "out", *given).code != 0
    work = tmp_path / "out.search"
    trials = (work / "trials.jsonl").read_bytes()
    fails(
        sstool, "search", "--model", other, "--out", tmp_path / "out", "--resume", *given, expected="holds a search for another checkpoint"
    )
    recipe = tmp_path / "int8.yaml"
    recipe.write_text(f"{RECIPE}dtype: int8\n", encoding="utf-8")
    again = ("search", "--model", model, "--out", tmp_path / "out", "--resume", *given)
    fails(sstool, *again, "--recipe", recipe, expected="or other export settings")
    fails(sstool, "search", "--model", model, "--out", tmp_path / "out", *given, expected="holds an interrupted search of 4 trials")
    assert (work / "trials.jsonl").read_bytes() == trials
    assert sstool(*again).code == 0
    assert not work.exists()


def test_wrong_input_is_found_before_anything_is_built(sstool: Command, tmp_path: Path) -> None:
    missing = tmp_path / "no-such-model"
    broken = tmp_path / "prompts.jsonl"
    broken.write_text('{"prompt": "w1"}\n{"prompt": \n', encoding="utf-8")
    for command in ("search", "export"):
        args = (command, "--model", missing, "--out", tmp_path / "out")
        fails(sstool, *args, "--calibration", broken, expected="line 2: not JSON")
        fails(sstool, *args, "--threads", "0", expected="threads is out of range")
    assert {p.name for p in tmp_path.iterdir()} == {"prompts.jsonl"}


def test_a_skip_set_file_with_mode_plain_sets_the_default_mode(sstool: Command, model: Path, tmp_path: Path) -> None:
    found = tmp_path / "skip_set.json"
    found.write_text('{"mlp": [1], "exit": "fixed", "max_draft": 3, "mode": "plain"}', encoding="utf-8")
    assert sstool("export", "--model", model, "--out", tmp_path / "out", "--skip-set", found).code == 0
    shown = sstool("inspect", tmp_path / "out")
    assert re.search(r"^ *default mode +plain$", shown.out, re.MULTILINE)
    outcome = sstool("generate", tmp_path / "out", "--prompt", "w1 w2", "--max-new-tokens", "4", "--json")
    assert json.loads(outcome.out)["stats"]["rounds"] == 0
    found.write_text('{"mlp": [1], "mode": "slowly"}', encoding="utf-8")
    fails(sstool, "export", "--model", model, "--out", tmp_path / "no", "--skip-set", found, expected="'slowly'")


@pytest.mark.parametrize("wrong", ["no folder", "no config", "another depth"])
def test_force_clears_nothing_for_a_checkpoint_that_cannot_be_searched(sstool: Command, model: Path, tmp_path: Path, wrong: str) -> None:
    interrupted = tmp_path / "found.search" / "trials.jsonl"
    interrupted.parent.mkdir()
    interrupted.write_text('{"kind": "trial"}\n', encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("skip_set: {attention: [7], mlp: []}\n" if wrong == "another depth" else "{}\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    given = {"no folder": tmp_path / "missing", "no config": tmp_path / "empty", "another depth": model}[wrong]
    expected = {"no folder": "no model folder", "no config": "is empty", "another depth": "7"}[wrong]
    fails(sstool, "search", "--model", given, "--out", tmp_path / "found", "--recipe", recipe, "--force", expected=expected)
    assert interrupted.read_text(encoding="utf-8") == '{"kind": "trial"}\n'
    assert {p.name for p in tmp_path.iterdir()} == {"found.search", "recipe.yaml", "empty"}


def test_force_clears_nothing_if_the_recipe_is_for_another_depth_than_the_artifact(sstool: Command, model: Path, tmp_path: Path) -> None:
    artifact, interrupted = tmp_path / "artifact", tmp_path / "found.search" / "trials.jsonl"
    assert sstool("export", "--model", model, "--out", artifact, "--no-search").code == 0
    interrupted.parent.mkdir()
    interrupted.write_text('{"kind": "trial"}\n', encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("skip_set: {attention: [7], mlp: []}\n", encoding="utf-8")
    fails(sstool, "search", "--artifact", artifact, "--out", tmp_path / "found", "--recipe", recipe, "--force", expected="7")
    assert interrupted.read_text(encoding="utf-8") == '{"kind": "trial"}\n'
