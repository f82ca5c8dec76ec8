"""`sstool generate`: output as text and as JSON Lines, and how a seed repeats it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssruntime import GenerationConfig, load
from ssruntime.sampling.noise import prompt_seed
from tests.cli.conftest import Command
from tests.runtime.scripted import refresh_file_entries

PROMPT = "def area(radius):"
ONE_THREAD = ("--threads", "1")
"""One thread, so that engines and parallel test runs do not compete for the cores."""
SAMPLED = (*ONE_THREAD, "--temperature", "0.8", "--top-p", "0.95", "--max-new-tokens", "24", "--max-context", "64")
COUNTS = {"rounds", "proposed", "accepted", "alternatives", "alternatives_accepted", "withheld", "emitted", "discarded"}
STATS = {*COUNTS, "cached_tokens", "prefill_s", "decode_s", "tokens_per_second"}


def check_counts(result: dict[str, Any]) -> None:
    stats = result["stats"]
    assert set(result) == {"id", "prompt", "text", "token_ids", "finish_reason", "seed", "stats"}
    assert set(stats) == STATS
    assert 0 <= stats["accepted"] <= stats["proposed"]
    assert 0 <= stats["alternatives_accepted"] <= min(stats["alternatives"], stats["accepted"])
    assert len(result["token_ids"]) == 1 + stats["emitted"] - stats["discarded"]
    if stats["rounds"]:
        assert stats["emitted"] == stats["accepted"] + stats["rounds"] - stats["withheld"]


@pytest.mark.parametrize("mode", ["plain", "speculative"])
def test_json_has_the_documented_fields_and_invariants(sstool: Command, demo_artifact: Path, mode: str) -> None:
    outcome = sstool("generate", demo_artifact, "--prompt", PROMPT, "--json", "--mode", mode, "--seed", "3", *SAMPLED)
    assert outcome.code == 0
    [result] = outcome.lines()
    check_counts(result)
    assert (result["id"], result["prompt"], result["seed"]) == ("0", PROMPT, 3)
    assert result["finish_reason"] in {"eos", "stop", "length", "context"}
    if mode == "plain":
        stats = result["stats"]
        assert (stats["rounds"], stats["proposed"], stats["accepted"]) == (0, 0, 0)


def test_both_modes_and_the_stream_give_the_same_text(sstool: Command, demo_artifact: Path) -> None:
    args = ("generate", demo_artifact, "--prompt", PROMPT, "--seed", "5", *SAMPLED)
    plain = sstool(*args, "--mode", "plain", "--json").lines()[0]
    speculative = sstool(*args, "--json").lines()[0]
    streamed = sstool(*args)
    assert speculative["token_ids"] == plain["token_ids"]
    assert streamed.out == plain["text"] + "\n"
    assert "seed 5" in streamed.err


def test_a_seed_that_was_drawn_is_printed_and_repeats_the_output(sstool: Command, demo_artifact: Path) -> None:
    args = ("generate", demo_artifact, "--prompt", PROMPT, "--json", *SAMPLED)
    first, second = (sstool(*args).lines()[0] for _ in range(2))
    assert first["seed"] != second["seed"]
    again = sstool(*args, "--seed", str(first["seed"])).lines()[0]
    assert again["token_ids"] == first["token_ids"]


def test_decoding_is_greedy_unless_a_sampling_flag_is_given(sstool: Command, demo_artifact: Path) -> None:
    args = ("generate", demo_artifact, "--prompt", PROMPT, "--json", "--max-new-tokens", "16", *ONE_THREAD)
    texts = {sstool(*args, "--seed", str(seed)).lines()[0]["text"] for seed in (1, 2)}
    assert len(texts) == 1
    sampled = {sstool(*args, "--seed", str(seed), "--top-p", "0.99").lines()[0]["text"] for seed in range(4)}
    assert len(sampled) > 1


def test_invalid_prompts_of_a_file_are_reported_in_order_and_the_others_run(
    sstool: Command, demo_artifact: Path, prompts_file: Path
) -> None:
    outcome = sstool("generate", demo_artifact, "--prompts", prompts_file, "--json", "--seed", "11", *SAMPLED)
    assert outcome.code == 1
    results = outcome.lines()
    assert [r["id"] for r in results] == ["first", "1", "empty", "long"]
    for result in results[:2]:
        check_counts(result)
        assert result["seed"] == 11
    for result, kind in zip(results[2:], ("PromptError", "ContextOverflowError"), strict=True):
        assert set(result) == {"id", "error"}
        assert set(result["error"]) == {"type", "message", "hint"}
        assert result["error"]["type"] == kind


def test_without_json_invalid_prompts_of_a_file_are_lines_on_stderr(sstool: Command, demo_artifact: Path, prompts_file: Path) -> None:
    outcome = sstool("generate", demo_artifact, "--prompts", prompts_file, "--max-new-tokens", "4", "--max-context", "64", *ONE_THREAD)
    assert outcome.code == 1
    assert [line for line in outcome.out.splitlines() if line.startswith("--- ")] == ["--- first", "--- 1", "--- empty", "--- long"]
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert errors[0].startswith("error: prompt empty: ")
    assert errors[1].startswith("error: prompt long: ")


def test_a_prompt_s_seed_depends_on_its_index_in_the_file(sstool: Command, demo_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text((json.dumps({"prompt": PROMPT}) + "\n") * 3, encoding="utf-8")
    results = sstool("generate", demo_artifact, "--prompts", path, "--json", "--seed", "7", *SAMPLED).lines()
    single = sstool("generate", demo_artifact, "--prompt", PROMPT, "--json", "--seed", "7", *SAMPLED).lines()[0]
    assert results[0]["token_ids"] == single["token_ids"]
    config = GenerationConfig(temperature=0.8, top_p=0.95, max_new_tokens=24, seed=prompt_seed(7, 2))
    with load(demo_artifact, max_context=64, threads=1) as engine:
        assert results[2]["token_ids"] == engine.generate(PROMPT, config).token_ids


def test_a_stop_text_ends_the_output_and_is_left_out(sstool: Command, demo_artifact: Path) -> None:
    args = ("generate", demo_artifact, "--prompt", PROMPT, "--json", "--ignore-eos", "--max-new-tokens", "32", *ONE_THREAD)
    whole = sstool(*args).lines()[0]["text"]
    stop = whole[6:9]
    result = sstool(*args, "--stop", "never seen", "--stop", stop).lines()[0]
    assert result["finish_reason"] == "stop"
    assert result["text"] == whole[: whole.index(stop)]


def test_reaching_the_end_of_the_context_is_not_an_error(sstool: Command, demo_artifact: Path) -> None:
    outcome = sstool("generate", demo_artifact, "--prompt", PROMPT, "--json", "--ignore-eos", "--max-context", "16", *ONE_THREAD)
    assert outcome.code == 0
    assert outcome.lines()[0]["finish_reason"] == "context"


def test_unsupported_settings_of_the_checkpoint_give_a_warning(sstool: Command, demo_copy: Path) -> None:
    path = demo_copy / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 1, "repetition_penalty": 1.3}), encoding="utf-8")
    refresh_file_entries(demo_copy)
    outcome = sstool("generate", demo_copy, "--prompt", PROMPT, "--max-new-tokens", "2", *ONE_THREAD)
    assert outcome.code == 0
    assert [line for line in outcome.err.splitlines() if line.startswith("warning: ") and "repetition_penalty" in line]


def test_chat_renders_the_prompt_with_the_model_s_template(sstool: Command, demo_copy: Path) -> None:
    before = "import os\n"
    template = "<s>import os\n{{ messages[0]['content'] }}"
    path = demo_copy / "chat_template.jinja"
    path.write_text(template, encoding="utf-8")
    raw = sstool("generate", demo_copy, "--prompt", PROMPT, "--json", "--max-new-tokens", "8", *ONE_THREAD).lines()[0]
    same = sstool("generate", demo_copy, "--prompt", before + PROMPT, "--json", "--max-new-tokens", "8", *ONE_THREAD).lines()[0]
    chat = sstool("generate", demo_copy, "--prompt", PROMPT, "--json", "--max-new-tokens", "8", "--chat", *ONE_THREAD).lines()[0]
    assert len(chat["token_ids"]) == len(raw["token_ids"]) == 8
    assert chat["token_ids"] == same["token_ids"] != raw["token_ids"]


def test_chat_options_reach_the_template_unless_the_prompt_gives_its_own(sstool: Command, demo_copy: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{{ tools | tojson }}{{ depth }}{{ mood }}"
    (demo_copy / "chat_template.jinja").write_text(template, encoding="utf-8")
    tools, prompts = tmp_path / "tools.json", tmp_path / "chats.jsonl"
    tools.write_text('[{"name": "add"}]', encoding="utf-8")
    own = {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}], "tools": [], "variables": {"depth": 9}}
    chats = [{"messages": [{"role": "user", "content": "a"}]}, own, {"prompt": "a"}]
    prompts.write_text("\n".join(json.dumps(c) for c in chats), encoding="utf-8")
    texts = ['system:B;user:a;[{"name": "add"}]3calm', "system:S;user:a;[]9calm", 'system:B;user:a;[{"name": "add"}]3calm']
    options = ("--system", "B", "--tools", tools, "--template-variable", "depth=3", "--template-variable", "mood=calm")
    args = ("--json", "--max-new-tokens", "6", "--temperature", "0", *ONE_THREAD)
    found = sstool("generate", demo_copy, "--prompts", prompts, "--chat", *options, *args).lines()
    with load(demo_copy, threads=1) as engine:
        tokenizer = engine.preparer.codec.tokenizer
        for text, result in zip(texts, found, strict=True):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert result["token_ids"] == engine.generate(ids, GenerationConfig(max_new_tokens=6, temperature=0.0)).token_ids
    assert found[0]["prompt"] == [{"role": "system", "content": "B"}, {"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--system", "B"), "--system, --tools and --template-variable are for chats"),
        (("--chat", "--template-variable", "x"), "--template-variable needs NAME=VALUE, found 'x'"),
        (("--chat", "--tools", "missing.json"), "cannot read tools from missing.json"),
        (("--chat", "--tools", "{bad}"), "does not hold a JSON list of objects"),
    ],
)
def test_wrong_chat_options_are_refused(
    sstool: Command, demo_artifact: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("[1]", encoding="utf-8")
    outcome = sstool("generate", demo_artifact, "--prompt", "a", *(o.replace("{bad}", str(bad)) for o in options))
    assert outcome.code in {1, 2}
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_chat_ends_with_the_tokenizer_s_end_token_too(sstool: Command, demo_copy: Path) -> None:
    (demo_copy / "chat_template.jinja").write_text("import os\n", encoding="utf-8")
    args = ("generate", demo_copy, "--prompt", "a", "--json", "--max-new-tokens", "24", "--temperature", "0", *ONE_THREAD)
    whole = sstool(*args, "--chat").lines()[0]["token_ids"]
    with load(demo_copy, threads=1) as engine:
        text = engine.preparer.codec.tokenizer.id_to_token(whole[5])
    path = demo_copy / "tokenizer_config.json"
    path.write_text(json.dumps({"eos_token": text}), encoding="utf-8")
    refresh_file_entries(demo_copy)
    chat = sstool(*args, "--chat").lines()[0]
    assert (chat["token_ids"], chat["finish_reason"]) == (whole[: whole.index(whole[5]) + 1], "eos")
    assert sstool(*args, "--chat", "--ignore-eos").lines()[0]["token_ids"][:8] == whole[:8]
