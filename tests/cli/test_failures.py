"""Every failure of a command is one line with a hint on stderr.

Nothing is written to stdout, and the exit code is the documented one.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sstool.cli import main
from tests.cli.conftest import Command, Outcome

PROMPT = ("--prompt", "def area(radius):")
NAN = "nan"


def fails(outcome: Outcome, code: int, *expected: str) -> None:
    assert outcome.code == code
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert "; hint: " in lines[0]
    assert not [text for text in expected if text not in lines[0]], lines[0]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("generate",), "Missing argument 'DIR'"),
        (("generate", "DIR"), "give one of --prompt and --prompts"),
        (("generate", "DIR", "--prompt", "a", "--prompts", "f"), "exclude each other"),
        (("generate", "DIR", *PROMPT, "--temprature", "1"), "--temperature"),
        (("generate", "DIR", *PROMPT, "--temperature", "warm"), "'warm' is not a valid float"),
        (("generate", "DIR", *PROMPT, "--top-k", "1.5"), "'1.5' is not a valid integer"),
        (("generate", "DIR", *PROMPT, "--mode", "fast"), "'plain', 'speculative'"),
        (("generate", "DIR", *PROMPT, "--exit", "never"), "'fixed', 'confidence', 'adaptive'"),
        (("generate", "DIR", *PROMPT, "--sampling", "beam"), "'coupled', 'rejection'"),
        (("generate", "DIR", "extra", *PROMPT), "unexpected extra argument"),
        (("bench", "DIR"), "Missing option '--prompts'"),
        (("bench", "DIR", "--prompts", "f", "--mode", "plain", "--modes", "plain"), "exclude each other"),
        (("check",), "Missing argument 'DIR'"),
        (("inspect",), "Missing argument 'DIR'"),
        (("export", "--model", "m"), "Missing option '--out'"),
        (("exprot",), "No such command 'exprot'"),
        (("--verbose",), "No such option"),
    ],
)  # fmt: skip
def test_wrong_usage_exits_2(sstool: Command, args: tuple[str, ...], expected: str) -> None:
    fails(sstool(*args), main.EXIT_USAGE, expected, "-h")


def test_without_a_command_help_is_shown_and_the_exit_code_is_2(sstool: Command) -> None:
    outcome = sstool()
    assert outcome.code == main.EXIT_USAGE
    assert "Commands:" in outcome.err + outcome.out


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--temperature", "-0.1", "temperature is out of range"),
        ("--temperature", NAN, "temperature is out of range"),
        ("--temperature", "inf", "temperature is out of range"),
        ("--top-p", "0", "top_p is out of range"),
        ("--top-p", "1.01", "top_p is out of range"),
        ("--top-p", NAN, "top_p is out of range"),
        ("--top-k", "-1", "top_k is out of range"),
        ("--min-p", "-0.5", "min_p is out of range"),
        ("--min-p", "2", "min_p is out of range"),
        ("--min-p", NAN, "min_p is out of range"),
        ("--exit-threshold", "1.5", "exit_threshold is out of range"),
        ("--exit-threshold", "-1", "exit_threshold is out of range"),
        ("--exit-threshold", NAN, "exit_threshold is out of range"),
        ("--max-new-tokens", "0", "max_new_tokens is out of range"),
        ("--max-new-tokens", "-3", "max_new_tokens is out of range"),
        ("--max-draft", "0", "max_draft is out of range"),
        ("--max-draft", "16", "max_draft is out of range"),
        ("--max-alternatives", "-1", "max_alternatives is out of range"),
        ("--max-alternatives", "4", "max_alternatives is out of range"),
        ("--seed", "-1", "seed is out of range"),
        ("--seed", str(2**63), "seed is out of range"),
        ("--stop", "", "stop must be a list of non-empty strings"),
        ("--threads", "0", "threads is out of range"),
        ("--threads", "-2", "threads is out of range"),
        ("--max-context", "0", "max_context is out of range"),
        ("--max-context", "4096", "max_context is out of range"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "bench"])
def test_a_setting_out_of_range_exits_1(
    sstool: Command, demo_artifact: Path, prompts_file: Path, command: str, flag: str, value: str, expected: str
) -> None:
    source = ("--prompts", str(prompts_file))
    fails(sstool(command, demo_artifact, *source, flag, value), main.EXIT_FAILED, expected)


def test_a_threshold_for_the_fixed_stopping_rule_exits_1(sstool: Command, demo_artifact: Path) -> None:
    fails(sstool("generate", demo_artifact, *PROMPT, "--exit", "fixed", "--exit-threshold", "0.5"), main.EXIT_FAILED, "exit_threshold")


def test_an_unknown_bench_mode_exits_1_and_the_closest_is_named(sstool: Command, demo_artifact: Path, prompts_file: Path) -> None:
    outcome = sstool("bench", demo_artifact, "--prompts", prompts_file, "--modes", "plain,speculativ")
    fails(outcome, main.EXIT_FAILED, "'speculativ'", "did you mean 'speculative'?")


def test_bench_with_zero_repeats_exits_1(sstool: Command, demo_artifact: Path, prompts_file: Path) -> None:
    fails(sstool("bench", demo_artifact, "--prompts", prompts_file, "--repeat", "0"), main.EXIT_FAILED, "repeat is out of range")


@pytest.mark.parametrize("text", ["", "value = " * 3000])
def test_a_single_prompt_that_cannot_be_run_exits_1(sstool: Command, demo_artifact: Path, text: str) -> None:
    fails(sstool("generate", demo_artifact, "--prompt", text), main.EXIT_FAILED, "prompt")
    fails(sstool("generate", demo_artifact, "--prompt", text, "--json"), main.EXIT_FAILED, "prompt")


def test_a_prompt_of_invalid_bytes_exits_1(sstool: Command, demo_artifact: Path) -> None:
    fails(sstool("generate", demo_artifact, "--prompt", "a\udcff"), main.EXIT_FAILED, "not valid Unicode")


def test_a_chat_without_a_template_exits_1(sstool: Command, demo_artifact: Path) -> None:
    fails(sstool("generate", demo_artifact, *PROMPT, "--chat"), main.EXIT_FAILED, "chat template")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "holds no prompts"),
        (b'{"prompt": "a"}\n{"prompt"}\n', "line 2"),
        (b'{"text": "a"}\n', "key 'prompt' is missing"),
        (None, "cannot read"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "bench", "check"])
def test_a_wrong_prompts_file_exits_1(
    sstool: Command, demo_artifact: Path, tmp_path: Path, command: str, data: bytes | None, expected: str
) -> None:
    path = tmp_path / "wrong.jsonl"
    if data is not None:
        path.write_bytes(data)
    fails(sstool(command, demo_artifact, "--prompts", path), main.EXIT_FAILED, expected, str(path))


def edit_manifest(folder: Path, change: Mapping[str, Any]) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | dict(change)), encoding="utf-8")


def append(path: Path) -> None:
    with path.open("ab") as handle:
        handle.write(b"\0")


DAMAGE = {
    "missing": (shutil.rmtree, "no artifact at"),
    "not an artifact": (lambda f: (f / "manifest.json").unlink(), "is not an artifact"),
    "manifest cut": (lambda f: (f / "manifest.json").write_bytes((f / "manifest.json").read_bytes()[:100]), "cannot be read"),
    "manifest empty": (lambda f: (f / "manifest.json").write_bytes(b""), "cannot be read"),
    "newer schema": (lambda f: edit_manifest(f, {"schema_version": 999}), "schema version 999"),
    "unknown key": (lambda f: edit_manifest(f, {"surprise": 1}), "unknown key 'surprise'"),
    "weights of another size": (lambda f: append(f / "weights.bin"), "weights.bin has"),
    "graph of another size": (lambda f: append(f / "verify.onnx"), "verify.onnx has"),
    "draft missing": (lambda f: (f / "draft.onnx").unlink(), "draft.onnx is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["generate", "bench", "check", "inspect"])
def test_a_damaged_artifact_exits_1(sstool: Command, demo_copy: Path, prompts_file: Path, command: str, damage: str) -> None:
    apply, expected = DAMAGE[damage]
    apply(demo_copy)
    source = () if command == "inspect" else ("--prompts", prompts_file)
    fails(sstool(command, demo_copy, *source), main.EXIT_FAILED, expected)


@pytest.mark.parametrize("command", ["generate", "bench", "check", "inspect"])
def test_a_model_folder_is_not_an_artifact(sstool: Command, demo_model: Path, prompts_file: Path, command: str) -> None:
    source = () if command == "inspect" else ("--prompts", prompts_file)
    fails(sstool(command, demo_model, *source), main.EXIT_FAILED, "is a model folder, not an artifact", "sstool export")


def test_check_finds_one_flipped_byte(sstool: Command, demo_copy: Path) -> None:
    path = demo_copy / "weights.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    outcome = sstool("check", demo_copy, "--json")
    [report] = outcome.lines()
    assert outcome.code == main.EXIT_FAILED
    assert not report["ok"]
    assert report["digests"]["status"] == "failed"
    assert "weights.bin" in report["digests"]["reason"]


@pytest.mark.parametrize("where", ["before", "after"])
def test_debug_gives_a_traceback_before_and_after_the_command_name(sstool: Command, tmp_path: Path, where: str) -> None:
    args = ("--debug", "inspect", tmp_path / "none") if where == "before" else ("inspect", tmp_path / "none", "--debug")
    outcome = sstool(*args)
    assert outcome.code == main.EXIT_FAILED
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: no artifact at")


@pytest.mark.parametrize(
    ("package", "extra", "args"),
    [
        ("click", "cli", ("inspect", "DEMO")),
        ("rich", "cli", ("bench", "DEMO", "--prompts", "PROMPTS", "--max-new-tokens", "2", "--max-context", "64", "--repeat", "1")),
        ("onnxruntime", "cpu", ("generate", "DEMO", *PROMPT)),
        ("yaml", "toolchain", ("export", "--recipe", "none.yaml", "--out", "OUT")),
        ("mobius", "toolchain", ("export", "--model", "MODEL", "--out", "OUT")),
        ("torch", "toolchain", ("export", "--model", "MODEL", "--out", "OUT")),
        ("transformers", "toolchain", ("export", "--model", "MODEL", "--out", "OUT")),
    ],
)
def test_a_missing_package_names_the_extra(
    demo_artifact: Path, demo_model: Path, prompts_file: Path, tmp_path: Path, package: str, extra: str, args: tuple[str, ...]
) -> None:
    paths = {"DEMO": demo_artifact, "MODEL": demo_model, "PROMPTS": prompts_file, "OUT": tmp_path / "out"}
    process = start(*[paths.get(a, a) for a in args], without=package)
    _, err = process.communicate(timeout=120)
    assert process.returncode == main.EXIT_FAILED
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert f"sstool[{extra}]" in last
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def start(*args: str | Path, without: str | None = None) -> subprocess.Popen[str]:
    """Starts `sstool` in its own process; `without` names a package that the process cannot import."""
    # A background job of a script ignores interrupts, and a child process would inherit that.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    code += f" sys.modules.update({dict.fromkeys([without] if without else [])}); from sstool.cli.main import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_interrupt_exits_130_and_prints_no_error(demo_artifact: Path) -> None:
    process = start("generate", demo_artifact, *PROMPT, "--ignore-eos", "--max-new-tokens", "2000", "--mode", "plain")
    assert process.stdout is not None
    process.stdout.read(1)  # decoding has begun
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == main.EXIT_INTERRUPTED
    assert err.strip() == ""


def test_a_reader_that_closes_the_pipe_causes_no_error(demo_artifact: Path) -> None:
    process = start("generate", demo_artifact, *PROMPT, "--ignore-eos", "--max-new-tokens", "2000", "--mode", "plain")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()
    assert "Traceback" not in err
    assert "error" not in err


def test_an_error_with_a_closed_stdout_is_one_line(tmp_path: Path) -> None:
    code = "from sstool.cli.main import main; main()"
    command = f"{sys.executable} -c '{code}' generate {tmp_path}/none --prompt x >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == main.EXIT_FAILED
    assert done.stderr.startswith("error: no artifact at ")
    assert done.stderr.count("\n") == 1


def test_an_error_says_nothing_to_the_terminal(sstool: Command) -> None:
    for args in (("inspect", "no\x1b[31m\x9bne\u202e"), ("no\x1b[31mne",)):
        outcome = sstool(*args)
        assert outcome.code != main.EXIT_OK
        assert outcome.err.removesuffix("\n").isprintable()
