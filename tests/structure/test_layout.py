"""The source follows the rules of CONTRIBUTING.md for sizes, names, imports and configuration."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RUNTIME = REPOSITORY / "runtime" / "ssruntime"
TOOLCHAIN = REPOSITORY / "toolchain" / "sstool"
TESTS = REPOSITORY / "tests"

MAX_FILE_LINES = 600
MAX_BODY_LINES = 80
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}
TOP_LEVEL = {
    ".ci", ".git", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md",
    "artifacts", "constraints.txt", "pyproject.toml", "recipes", "runtime", "tests", "toolchain",
}  # fmt: skip
LEFT_BY_TOOLS = {".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "dist"}

CONFIGURATION = ("Config", "Options", "Settings", "Recipe", "Defaults", "Manifest")

RUNTIME_MAY_IMPORT = {"ssruntime", "numpy", "onnxruntime", "tokenizers", "jinja2"}
"""Packages that the runtime may import besides the standard library; a GPU backend will add its own."""
SERVER_MAY_IMPORT = {"fastapi", "starlette", "uvicorn", "h11", "pydantic", "pydantic_core", "prometheus_client", "ray"}
"""Packages that only the server may import besides these."""

SOURCES = sorted(p for root in (RUNTIME, TOOLCHAIN, TESTS) for p in root.rglob("*.py"))
PRODUCT = [p for p in SOURCES if TESTS not in p.parents]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Returns the number of lines of a function's body, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def offenders(paths: Iterable[Path], is_wrong: Callable[[Path], object]) -> list[str]:
    """Returns the files for which `is_wrong` returns something true, each with that value."""
    return [f"{path.relative_to(REPOSITORY)}: {found}" for path in paths if (found := is_wrong(path))]


def imported_roots(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_the_top_level_holds_what_the_design_lists_and_nothing_else() -> None:
    found = {p.name for p in REPOSITORY.iterdir()} - LEFT_BY_TOOLS
    assert found <= TOP_LEVEL


def test_there_are_sources_to_check() -> None:
    assert {"ssruntime", "sstool", "structure"} <= {p.parent.name for p in SOURCES}


def test_a_file_is_at_most_600_lines() -> None:
    def num_lines(path: Path) -> int:
        return len(path.read_text(encoding="utf-8").splitlines())

    assert not offenders(SOURCES, lambda p: num_lines(p) if num_lines(p) > MAX_FILE_LINES else 0)


def test_a_function_body_is_at_most_80_lines() -> None:
    assert not offenders(SOURCES, lambda p: [f.name for f in functions(parse(p)) if body_lines(f) > MAX_BODY_LINES])


def test_a_module_opens_with_a_docstring() -> None:
    assert not offenders(SOURCES, lambda p: not ast.get_docstring(parse(p)))


def test_names_say_what_is_inside() -> None:
    assert not offenders(SOURCES, lambda p: {p.stem, p.parent.name} & VAGUE_NAMES)


def test_the_runtime_imports_only_what_the_design_allows() -> None:
    allowed = RUNTIME_MAY_IMPORT | set(sys.stdlib_module_names)
    server = RUNTIME / "server"
    own = {True: allowed | SERVER_MAY_IMPORT, False: allowed}
    assert not offenders(sorted(RUNTIME.rglob("*.py")), lambda p: imported_roots(parse(p)) - own[server in p.parents])


def test_the_toolchain_never_imports_the_tests() -> None:
    assert not offenders(PRODUCT, lambda p: imported_roots(parse(p)) & {"tests", "pytest", "hypothesis"})


def test_no_test_imports_from_another_test() -> None:
    """Code that several test files use is in a conftest or in a module without tests."""

    def imported_tests(path: Path) -> set[str]:
        imports = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {f"{getattr(node, 'module', '')}.{alias.name}" for node in imports for alias in node.names}
        return {name for name in names if "tests." in name and any(part.startswith("test_") for part in name.split("."))}

    assert not offenders((p for p in SOURCES if TESTS in p.parents), imported_tests)


def test_only_the_command_line_prints() -> None:
    def prints(path: Path) -> list[int]:
        calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
        return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]

    assert not offenders([p for p in PRODUCT if TOOLCHAIN / "cli" not in p.parents], prints)


def test_no_function_takes_a_bag_of_options() -> None:
    """Click passes a command's options by name, so only the files of shared options take `**kwargs`."""
    shared = {TOOLCHAIN / "cli" / name for name in ("chat_options.py", "options.py", "search_options.py")}
    others = [p for p in PRODUCT if p not in shared]
    assert not offenders(others, lambda p: [f.name for f in functions(parse(p)) if f.args.kwarg is not None])


def test_configuration_is_frozen_and_keyword_only() -> None:
    def loose(path: Path) -> list[str]:
        classes = [n for n in ast.walk(parse(path)) if isinstance(n, ast.ClassDef) and n.name.endswith(CONFIGURATION)]
        return [c.name for c in classes for d in c.decorator_list if "dataclass" in ast.unparse(d) and not is_frozen(d)]

    def is_frozen(decorator: ast.expr) -> bool:
        return isinstance(decorator, ast.Call) and {"frozen", "kw_only"} <= {k.arg for k in decorator.keywords}

    assert not offenders(PRODUCT, loose)
