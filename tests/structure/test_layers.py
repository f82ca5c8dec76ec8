"""Imports run downwards only: a module imports from its own place in the order below, or from a lower one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# From the bottom up. A module belongs to the longest entry that its name begins with; a folder's entry covers
# everything in the folder that has no entry of its own.
RUNTIME = [
    "version", "errors", "graph_io", "folder_lock", "machine", "strict_reader", "checks", "registry", "scratch", "cache_folder",
    "prefix_cache", "planning", "sampling", "proposal", "logprobs", "results", "stopping", "artifact", "config", "text", "preparation",
    "backends.onnx_wire", "backends.rope", "backends.base", "backends.pool", "backends.device", "backends.cuda", "backends.ort",
    "backends.device_engines", "backends.ort_cuda", "backends.tensorrt", "backends.registry", "backends",
    "pass_costs", "acceptance", "proposers", "sequence", "scheduler", "engine", "request_queue", "async_engine",
    "server.schema", "server.settings", "server.errors", "server.metrics", "server.served_engine", "server.choices", "server.service",
    "server.failures",
    "server.prompts", "server.events", "server.limits", "server.access_log", "server.routes", "server.app", "server.resumed",
    "server.ray_app", "server.connection", "server.run", "server",
]  # fmt: skip
TOOLCHAIN = [
    "version", "jsonl_log", "prompts", "skip_set", "precision", "checkpoint", "hub",
    "graph.attention_kernel", "graph.sublayers", "graph.products", "graph.channel_scaling", "graph.sequential", "graph.passes", "graph",
    "targets.passes", "targets",
    "artifact_files.graph_files", "quantize.statistics", "quantize.formats", "quantize.low_bit_draft",
    "artifact_files", "quantize", "validation", "bench", "bench_serve", "check",
    "search.settings", "search.clock", "search.progress", "search.log", "search.drafts", "search.texts", "search.speed_model",
    "search.scoring", "search.finals.runs", "search.budget", "search.sources", "search.explore", "search.finals", "search.run", "search",
    "search_report", "pipelines", "selftest", "cli",
]  # fmt: skip

MAX_LOOSE_MODULES = 6
"""Modules at the toolchain's root beside `__init__.py`."""


def modules(root: Path, package: str) -> dict[str, Path]:
    """Returns the package's modules by their dotted names, folders by the names of their `__init__.py`."""
    paths = (root / package).rglob("*.py")
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Returns the package's own modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


def place(module: str, order: list[str]) -> int:
    """Returns a module's place in the order; the package itself is above everything."""
    relative = module.partition(".")[2]
    places = [(len(name), index) for index, name in enumerate(order) if relative == name or relative.startswith(f"{name}.")]
    assert places or not relative, f"{module} has no place in the order: add it where it belongs"
    return max(places)[1] if places else len(order)


@pytest.mark.parametrize(("folder", "package", "order"), [("runtime", "ssruntime", RUNTIME), ("toolchain", "sstool", TOOLCHAIN)])
def test_imports_run_downwards(folder: str, package: str, order: list[str]) -> None:
    known = modules(REPOSITORY / folder, package)
    upward = [(a, b) for a, path in known.items() for b in imports(path, known) if place(b, order) > place(a, order)]
    assert len(known) > len(order)
    assert not upward


def test_every_place_exists() -> None:
    for folder, package, order in (("runtime", "ssruntime", RUNTIME), ("toolchain", "sstool", TOOLCHAIN)):
        known = modules(REPOSITORY / folder, package)
        assert not [name for name in order if f"{package}.{name}" not in known]


def test_few_modules_lie_loose_at_the_toolchain_s_root() -> None:
    loose = [p.name for p in (REPOSITORY / "toolchain" / "sstool").glob("*.py") if p.name != "__init__.py"]
    assert len(loose) <= MAX_LOOSE_MODULES, loose
