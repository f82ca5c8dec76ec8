"""The runtime, help texts and commands that run artifacts do not import heavy packages.

Each test starts a fresh interpreter, because this one has imported everything already.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ssruntime

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLCHAIN_ONLY = {
    "torch", "transformers", "onnx", "onnx_ir", "mobius", "sstool", "click", "rich", "yaml", "safetensors", "huggingface_hub",
    "ax", "plotly", "scipy",
}  # fmt: skip
HEAVY = {"ax", "plotly", "scipy", "torch", "transformers", "onnx", "onnx_ir", "mobius", "onnxruntime", "numpy"}
MEASURED_BY_NEITHER = {"ax", "plotly", "torch", "transformers", "mobius"}


def loaded_after(code: str) -> set[str]:
    """Returns the top-level modules that a fresh interpreter has loaded after it ran `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_runtime_loads_nothing_of_the_toolchain() -> None:
    assert not loaded_after("import ssruntime") & TOOLCHAIN_ONLY


def test_loading_and_decoding_an_artifact_loads_nothing_of_the_toolchain(demo_artifact: Path) -> None:
    code = f"""
import ssruntime
engine = ssruntime.load({str(demo_artifact)!r})
engine.generate("def area(radius):", ssruntime.GenerationConfig(max_new_tokens=4))
engine.close()
"""
    assert not loaded_after(code) & TOOLCHAIN_ONLY


def test_help_imports_nothing_heavy() -> None:
    assert not loaded_after("from sstool.cli.main import run; run(['--help'])") & HEAVY


@pytest.mark.parametrize("name", ["export", "search", "generate", "bench", "serve", "bench-serve", "check", "inspect", "report"])
def test_help_of_a_command_imports_nothing_heavy(name: str) -> None:
    assert not loaded_after(f"from sstool.cli.main import run; run([{name!r}, '-h'])") & HEAVY


def run_code(*args: str) -> str:
    return f"from sstool.cli.main import run; assert run({list(args)!r}) == 0"


def test_commands_that_run_artifacts_do_not_import_torch(demo_artifact: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "def area(radius):"}\n{"prompt": "import os"}\n', encoding="utf-8")
    folder = str(demo_artifact)
    for args in (
        ("inspect", folder),
        ("generate", folder, "--prompt", "def area(radius):", "--max-new-tokens", "4", "--threads", "1"),
        ("bench", folder, "--prompts", str(prompts), "--max-new-tokens", "4", "--repeat", "1", "--threads", "1"),
        ("check", folder, "--prompts", str(prompts)),
    ):
        assert not loaded_after(run_code(*args)) & MEASURED_BY_NEITHER, args


def test_the_runtime_names_its_public_surface() -> None:
    assert len(set(ssruntime.__all__)) == len(ssruntime.__all__)
    tree = ast.parse(inspect.getsource(ssruntime))
    imported = {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(ssruntime.__all__) == {n for n in imported - {"annotations"} if not n.startswith("_")}
    assert {"load", "Engine", "GenerationConfig", "Completion", "Chunk", "SelfSpecError", "ArtifactError"} <= set(ssruntime.__all__)


def test_every_public_name_of_the_runtime_is_documented() -> None:
    for name in ssruntime.__all__:
        value: Any = getattr(ssruntime, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
        if inspect.isclass(value):
            methods = {k: v for k, v in vars(value).items() if inspect.isfunction(v) and not k.startswith("_")}
            assert not [k for k, v in methods.items() if not inspect.getdoc(v)], name


def test_a_module_that_lists_public_names_has_them_all() -> None:
    for root, package in ((REPOSITORY / "runtime", "ssruntime"), (REPOSITORY / "toolchain", "sstool")):
        for path in (root / package).rglob("__init__.py"):
            module = importlib.import_module(".".join(path.parent.relative_to(root).parts))
            assert not [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)], module.__name__
