"""`sstool export`: flags override the recipe, and wrong input leaves no files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sstool.cli import main
from tests.cli.conftest import Command


def fails(sstool: Command, *args: str | Path, expected: str, code: int = main.EXIT_FAILED) -> None:
    outcome = sstool("export", *args)
    assert outcome.code == code
    assert outcome.out == ""
    [line] = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert "; hint: " in line
    assert expected in line


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--skip-attention", "3,x"), "--skip-attention: 'x' is not a layer number"),
        (("--skip-mlp", "-1"), "mlp layer -1 does not exist"),
        (("--skip-mlp", "16"), "the model's layers are 0 to 15"),
        (("--skip-mlp", "4,4"), "named twice"),
        (("--skip-attention", ""), "no sublayer is skipped"),
        (("--skip-attention", ",".join(map(str, range(16))), "--skip-mlp", ",".join(map(str, range(16)))), "nothing is left to draft with"),
        (("--max-context", "0"), "max_context is out of range"),
        (("--max-context", "2049"), "max_context is out of range"),
        (("--target", "ort-cpus"), "did you mean 'ort-cpu'?"),
        (("--dtype", "fp23"), "did you mean 'fp32'?"),
        (("--revision", "main"), "which has no revision"),
        (("--recipe", "none.yaml"), "none.yaml cannot be read"),
        (("--skip-set", "none.json"), "none.json cannot be read"),
    ],
)
def test_a_wrong_setting_exits_1_and_leaves_no_files(
    sstool: Command, demo_model: Path, tmp_path: Path, args: tuple[str, ...], expected: str
) -> None:
    fails(sstool, "--model", demo_model, "--out", tmp_path / "out", *args, expected=expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"atention": [1]}', "did you mean 'attention'?"),
        ('{"mlp": ["a"]}', "expected int"),
        ("{", "is not JSON"),
        ("[1]", "expected an object"),
    ],
)
def test_a_wrong_skip_set_file_exits_1(sstool: Command, demo_model: Path, tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(text, encoding="utf-8")
    fails(sstool, "--model", demo_model, "--out", tmp_path / "out", "--skip-set", path, expected=expected)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "Missing option '--model'"),
        (("--model", "m", "--skip-set", "f", "--skip-mlp", "1"), "--skip-set excludes"),
        (("--model", "m", "--max-context", "many"), "'many' is not a valid integer"),
    ],
)
def test_wrong_usage_exits_2(sstool: Command, tmp_path: Path, args: tuple[str, ...], expected: str) -> None:
    fails(sstool, "--out", tmp_path / "out", *args, expected=expected, code=main.EXIT_USAGE)


def test_a_recipe_without_a_model_needs_the_flag(sstool: Command, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("dtype: fp32\n", encoding="utf-8")
    fails(sstool, "--out", tmp_path / "out", "--recipe", path, expected="the recipe names no model", code=main.EXIT_USAGE)


@pytest.mark.parametrize(("model", "expected"), [("./nowhere", "no model folder at"), ("org/no-such-model", "no network, or offline")])
def test_a_missing_model_exits_1(sstool: Command, tmp_path: Path, model: str, expected: str) -> None:
    fails(sstool, "--model", model, "--out", tmp_path / "out", expected=expected)


def test_an_artifact_is_not_replaced_without_force(sstool: Command, demo_model: Path, demo_copy: Path) -> None:
    before = (demo_copy / "manifest.json").read_bytes()
    fails(sstool, "--model", demo_model, "--out", demo_copy, expected="--force")
    assert (demo_copy / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_that_is_not_an_artifact_is_never_replaced(
    sstool: Command, demo_model: Path, tmp_path: Path, force: tuple[str, ...]
) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("years of work", encoding="utf-8")
    fails(sstool, "--model", demo_model, "--out", out, *force, expected=str(out))
    assert (out / "chapter.txt").read_text(encoding="utf-8") == "years of work"


def test_flags_override_the_recipe(sstool: Command, demo_model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max_context: 512\nskip_set: {attention: [3], mlp: [4], max_draft: 5}\n", encoding="utf-8")
    out = tmp_path / "out"
    outcome = sstool("export", "--model", demo_model, "--recipe", recipe, "--out", out, "--skip-mlp", "1,2")
    assert outcome.code == 0, outcome.err
    assert "the gate passed" in outcome.out
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["max_context"] == 512
    [draft] = manifest["drafts"]
    assert draft["skip"] == {"attention": [], "mlp": [1, 2]}
    assert draft["stopping"] is None
