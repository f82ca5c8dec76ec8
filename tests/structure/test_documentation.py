"""The pages keep their form: a short front page, short lines, links that lead somewhere, code that runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from sstool.cli.group import COMMANDS, cli

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "*/README.md", "recipes/demo/README.md")
    for path in REPOSITORY.glob(pattern)
    if not path.parent.name.startswith(".")
)
MAX_FRONT_PAGE_LINES = 130
MAX_PROSE_COLUMNS = 110


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Returns the code blocks of a language; an empty name gives those without one."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_there_are_pages_to_check() -> None:
    assert {"README.md", "CONTRIBUTING.md"} <= {page.name for page in PAGES}
    assert len(PAGES) >= 7


def test_the_front_page_is_short() -> None:
    assert len(text_of(REPOSITORY / "README.md").splitlines()) <= MAX_FRONT_PAGE_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_prose_lines_are_short(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL).splitlines()
    long = [line for line in prose if len(line) > MAX_PROSE_COLUMNS and not line.lstrip().startswith(("|", "<", "alt=", "src="))]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text_of(page))
    for target in (link or picture for link, picture in targets):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_python_code_runs(page: Path, demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "demo").symlink_to(demo_artifact)
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), {})


def commands() -> list[str]:
    """Returns every line of a code block that calls sstool."""
    lines = (line for page in PAGES for block in blocks(page, "") for line in block.splitlines())
    pattern = rf"(?:^|\.venv/bin/)(sstool (?:{'|'.join(COMMANDS)}) [^#]*)"
    found = (re.search(pattern, line) for line in lines)
    return sorted({match[1].strip() for match in found if match})


@pytest.mark.parametrize("line", commands())
def test_commands_have_the_options_that_the_pages_name(line: str) -> None:
    _, name, *args = shlex.split(line)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_parser(click.Context(command, help_option_names=["-h", "--help"])).parse_args(args)
