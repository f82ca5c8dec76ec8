"""Every command has help that names its documented flags, and its true choices and defaults."""

from __future__ import annotations

import click
import pytest

from ssruntime import config as runtime
from ssruntime import stopping
from ssruntime.preparation import DEFAULT_MAX_CONTEXT
from sstool.bench_serve import options as load_test
from sstool.cli import bench_serve, options
from sstool.cli.group import COMMANDS, cli
from sstool.prompts import BUILT_IN_CALIBRATION, read_prompts
from sstool.search.settings import SearchSettings
from tests.cli.conftest import Command

DECODING = {
    "--max-new-tokens", "--mode", "--exit", "--exit-threshold", "--max-draft", "--max-alternatives", "--threads", "--max-context",
    "--temperature", "--top-k",
    "--top-p", "--min-p", "--sampling", "--seed", "--stop", "--ignore-eos", "--no-bit-exact", "--on-cpu", "--bake-weights",
    "--stop-token-id", "--min-new-tokens", "--keep-special-tokens", "--deterministic",
}  # fmt: skip
SEARCHING = {"--calibration", "--trials", "--budget", "--seed", "--threads", "--resume"}
EVERYWHERE = {"--debug"}
FLAGS = {
    "export": {
        "--model",
        "--out",
        "--force",
        "--recipe",
        "--target",
        "--dtype",
        "--max-kl",
        "--block-size",
        "--cpu",
        "--draft-memory",
        "--max-context",
        "--revision",
        "--skip-attention",
        "--skip-mlp",
        "--skip-set",
        "--no-search",
    }
    | SEARCHING,
    "search": {"--model", "--artifact", "--recipe", "--out", "--force", "--draft-memory"} | SEARCHING,
    "generate": {"--prompt", "--prompts", "--chat", "--system", "--tools", "--template-variable", "--json"} | DECODING,
    "bench": {"--prompts", "--modes", "--repeat", "--against", "--model", "--json"} | DECODING,
    "serve": {
        "--host",
        "--port",
        "--api-key-file",
        "--served-model-name",
        "--max-sequences",
        "--queue",
        "--threads",
        "--max-context",
        "--no-draft",
        "--prefix-cache",
        "--share-prefixes",
        "--request-timeout",
        "--grace",
        "--max-body",
        "--log-prompts",
    },
    "bench-serve": {
        "--prompts",
        "--endpoint",
        "--model",
        "--max-tokens",
        "--temperature",
        "--top-p",
        "--seed",
        "--ignore-eos",
        "--rate",
        "--concurrency",
        "--requests",
        "--warmup",
        "--timeout",
        "--api-key-env",
        "--save",
        "--json",
    },
    "check": {"--model", "--prompts", "--full", "--json"},
    "inspect": {"--json"},
    "report": set(),
    "selftest": {"--target", "--shape", "--device", "--out", "--json"},
}


def command_of(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_group_lists_every_command(sstool: Command, flag: str) -> None:
    outcome = sstool(flag)
    assert outcome.code == 0
    for name, text in COMMANDS.items():
        assert name in outcome.out
        assert text in outcome.out


@pytest.mark.parametrize("name", FLAGS)
def test_a_command_has_the_documented_flags_and_no_others(sstool: Command, name: str) -> None:
    found = {o for p in command_of(name).params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")}
    assert found == FLAGS[name] | EVERYWHERE
    for flag in ("-h", "--help"):
        outcome = sstool(name, flag)
        assert outcome.code == 0
        assert not [f for f in found if f not in outcome.out]


@pytest.mark.parametrize("name", FLAGS)
def test_the_list_of_commands_repeats_the_first_line_of_each_help(name: str) -> None:
    assert (command_of(name).help or "").splitlines()[0] == COMMANDS[name]


@pytest.mark.parametrize("name", FLAGS)
def test_every_option_has_help(name: str) -> None:
    assert not [p.name for p in command_of(name).params if isinstance(p, click.Option) and not p.help]


def test_choices_are_the_libraries_own() -> None:
    assert bench_serve.ENDPOINTS == load_test.ENDPOINTS
    assert (options.MODES, options.EXITS, options.SAMPLINGS) == (runtime.MODES, runtime.EXITS, runtime.SAMPLINGS)


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("max_new_tokens", [runtime.DEFAULT_MAX_NEW_TOKENS]),
        ("exit", [stopping.DEFAULT_EXIT]),
        ("exit_threshold", [stopping.DEFAULT_EXIT_THRESHOLD]),
        ("max_draft", [stopping.DEFAULT_MAX_DRAFT, stopping.MAX_DRAFT_LIMIT]),
        ("max_alternatives", [runtime.DEFAULT_MAX_ALTERNATIVES, runtime.MAX_ALTERNATIVES_LIMIT]),
        ("max_context", [DEFAULT_MAX_CONTEXT]),
    ],
)
def test_defaults_in_the_help_are_the_runtime_s(flag: str, values: list[object]) -> None:
    [option] = [p for p in command_of("generate").params if p.name == flag]
    assert isinstance(option, click.Option)
    assert not [v for v in values if str(v) not in (option.help or "")]


@pytest.mark.parametrize(
    ("flag", "default"),
    [
        ("calibration", f"{len(read_prompts(BUILT_IN_CALIBRATION))} built-in prompts"),
        ("trials", SearchSettings().trials),
        ("budget", SearchSettings().budget),
        ("seed", SearchSettings().seed),
    ],
)
@pytest.mark.parametrize("name", ["export", "search"])
def test_defaults_in_the_help_are_the_search_s(name: str, flag: str, default: object) -> None:
    [option] = [p for p in command_of(name).params if p.name == flag]
    assert isinstance(option, click.Option)
    assert f"[default: {default}]" in (option.help or "")


def test_the_version_is_shown(sstool: Command) -> None:
    outcome = sstool("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("sstool ")
