"""`optimum-cli export sstool` takes the options of `sstool export`, and makes an artifact that works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssruntime import GenerationConfig, load

pytest.importorskip("optimum", reason="optimum is not installed: pip install 'sstool[optimum]'")


def optimum_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = "from optimum.commands.optimum_cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    # The installed sstool alone: a second copy on the path would register its command twice.
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=alone, cwd=os.sep)


def test_an_artifact_of_the_demo_model(demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    done = optimum_cli("export", "sstool", "-m", demo_model, "--skip-attention", "1,3", "--skip-mlp", "2", "--max-context", 128, out)
    assert done.returncode == 0, done.stderr
    assert "the gate passed" in done.stdout
    with load(out, threads=1) as engine:
        assert engine.artifact.manifest.max_context == 128
        assert engine.artifact.manifest.drafts[0].skip.attention == (1, 3)
        assert len(engine.generate("def area(radius):", GenerationConfig(max_new_tokens=8, ignore_eos=True)).token_ids) == 8


def test_options_and_errors_are_those_of_sstool_export(tmp_path: Path) -> None:
    shown = optimum_cli("export", "sstool", "--help").stdout
    for option in ("--model", "--no-search", "--target", "--dtype", "--skip-set", "--budget", "DIR"):
        assert option in shown
    assert "--out" not in shown
    done = optimum_cli("export", "sstool", "-m", tmp_path / "nowhere", "--no-search", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")


def test_the_command_is_listed_beside_optimum_s_own() -> None:
    assert "sstool" in optimum_cli("export", "--help").stdout
