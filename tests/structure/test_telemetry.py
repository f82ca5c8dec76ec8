"""ONNX Runtime records no telemetry in our processes, unless the host program has allowed it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def files_left_by(program: str, home: Path, **changes: str) -> list[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME")}
    subprocess.run([sys.executable, "-c", program], env={**env, "HOME": str(home), **changes}, check=True)
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("module", ["ssruntime.backends.ort.backend", "sstool.search.run", "sstool.cli.main, onnxruntime"])
def test_nothing_is_recorded(module: str, tmp_path: Path) -> None:
    assert files_left_by(f"import {module}", tmp_path) == []


def test_a_host_s_own_choice_is_kept(tmp_path: Path) -> None:
    program = "import os, ssruntime.backends.ort.backend; assert os.environ['ORT_DISABLE_TELEMETRY'] == ''"
    files_left_by(program, tmp_path, ORT_DISABLE_TELEMETRY="")
