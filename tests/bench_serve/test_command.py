"""`sstool bench-serve` against a real HTTP server: what it sends, prints, and does when interrupted."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssruntime.sampling.noise import prompt_seed
from sstool.cli.main import EXIT_FAILED, EXIT_INTERRUPTED
from tests.bench_serve.scripted_server import (
    CHAT,
    COMPLETIONS,
    DONE,
    GOOD,
    METRICS,
    MODELS,
    Answer,
    Received,
    ScriptedServer,
    Wire,
    delta,
    event,
    in_turn,
    lists_models,
    not_found,
    refuses,
    says,
    streams,
    text,
    usage,
)
from tests.cli.conftest import Command

Prompts = Callable[..., Path]
DISTRIBUTIONS = ("ttft_s", "itl_s", "chunk_gap_s", "latency_s")
COUNTERS = 'vllm:spec_decode_num_{}_total{{engine="0"}} {}\nvllm:spec_decode_num_{}_total{{engine="1"}} {}\n'


USAGE = {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}


def page(drafts: int, proposed: int, accepted: int) -> str:
    counts = {"drafts": drafts, "draft_tokens": proposed, "accepted_tokens": accepted}
    return "".join(COUNTERS.format(name, count, name, count) for name, count in counts.items())


def saved(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_json_is_one_object_with_the_documented_keys(sstool: Command, server: ScriptedServer, three: Path) -> None:
    outcome = sstool("bench-serve", server.url, "--prompts", three, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    [report] = outcome.lines()
    assert set(report) == {"environment", "server", "model", "endpoint", "settings", "interrupted", "runs"}
    assert (report["server"], report["model"], report["endpoint"], report["interrupted"]) == (server.url, "small", "completions", False)
    assert set(report["environment"]) == {"cpu", "logical_cpus", "sstool", "python", "system"}
    assert set(report["settings"]) == {
        "endpoint", "model", "max_tokens", "temperature", "top_p", "seed", "ignore_eos", "rate", "concurrency", "requests", "warmup",
        "timeout_s", "arrival_seed",
    }  # fmt: skip
    [run] = report["runs"]
    assert set(run) == {
        "rate", "concurrency", "ok", "refused", "failed", "cancelled", "failures", "wall_s", "requests_per_second", "output_tokens",
        "output_tokens_per_second", "prompt_tokens", "token_counts", "finish_reasons", *DISTRIBUTIONS, "wait_s", "acceptance",
        "client_cpu_s",
    }  # fmt: skip
    assert (run["ok"], run["output_tokens"], run["prompt_tokens"], run["token_counts"]) == (3, 15, 9, "usage")
    assert (run["rate"], run["concurrency"], run["wait_s"], run["acceptance"], run["failures"]) == (None, 1, None, None, {})
    assert run["finish_reasons"] == {"stop": 3}
    for name in DISTRIBUTIONS:
        assert set(run[name]) == {"mean", "p50", "p90", "p99"}
        assert 0 <= run[name]["p50"] <= run[name]["p90"] <= run[name]["p99"]
    assert run["client_cpu_s"] > 0
    assert run["output_tokens_per_second"] == pytest.approx(15 / run["wall_s"])


def test_what_is_not_set_is_not_sent(sstool: Command, server: ScriptedServer, three: Path) -> None:
    assert sstool("bench-serve", server.url, "--prompts", three).code == 0
    assert server.bodies(COMPLETIONS) == [
        {"model": "small", "prompt": prompt, "max_tokens": 128, "stream": True, "stream_options": {"include_usage": True}}
        for prompt in ("one", "two", "three")
    ]
    assert not [r for r in server.received if "authorization" in r.headers]


def test_settings_and_seeds_are_sent_and_prompts_repeat(sstool: Command, server: ScriptedServer, three: Path) -> None:
    options = ("--temperature", "0.5", "--top-p", "0.9", "--seed", "7", "--ignore-eos", "--max-tokens", "9", "--model", "other")
    assert sstool("bench-serve", f"{server.url}/v1/", "--prompts", three, "--requests", "5", *options).code == 0
    bodies = server.bodies(COMPLETIONS)
    assert [b["prompt"] for b in bodies] == ["one", "two", "three", "one", "two"]
    assert [b["seed"] for b in bodies] == [prompt_seed(7, index) for index in range(5)]
    assert {(b["temperature"], b["top_p"], b["ignore_eos"], b["max_tokens"], b["model"]) for b in bodies} == {(0.5, 0.9, True, 9, "other")}


def test_chats_go_to_the_endpoint_of_chats(sstool: Command, server: ScriptedServer, prompts: Prompts) -> None:
    server.answers[CHAT] = streams(delta(role="assistant"), delta(content="Hi"), delta("stop"), usage(1, 2), DONE)
    messages = [{"role": "user", "content": "Hi"}]
    path = prompts({"messages": messages, "tools": [{"type": "function"}], "variables": {"thinking": False}})
    [report] = sstool("bench-serve", server.url, "--prompts", path, "--json").lines()
    assert report["endpoint"] == "chat"
    [body] = server.bodies(CHAT)
    assert (body["messages"], body["tools"]) == (messages, [{"type": "function"}])
    assert body["chat_template_kwargs"] == {"thinking": False}


def test_texts_may_go_to_the_endpoint_of_chats(sstool: Command, server: ScriptedServer, three: Path) -> None:
    server.answers[CHAT] = streams(delta(content="Hi"), delta("stop"), usage(1, 2), DONE)
    assert sstool("bench-serve", server.url, "--prompts", three, "--endpoint", "chat").code == 0
    assert [b["messages"][0]["content"] for b in server.bodies(CHAT)] == ["one", "two", "three"]


def test_token_ids_go_to_completions(sstool: Command, server: ScriptedServer, prompts: Prompts) -> None:
    assert sstool("bench-serve", server.url, "--prompts", prompts({"prompt": [1, 2, 3]})).code == 0
    assert server.bodies(COMPLETIONS)[0]["prompt"] == [1, 2, 3]


def test_several_concurrencies_give_a_run_each(sstool: Command, server: ScriptedServer, three: Path) -> None:
    outcome = sstool("bench-serve", server.url, "--prompts", three, "--concurrency", "1,2", "--requests", "4", "--warmup", "2", "--json")
    [report] = outcome.lines()
    assert [(run["concurrency"], run["ok"]) for run in report["runs"]] == [(1, 4), (2, 4)]
    assert len(server.bodies(COMPLETIONS)) == 2 + 4 + 4


def meeting(number: int) -> Answer:
    """Returns an answer that comes when `number` requests wait for it."""
    waiting: list[asyncio.Event] = []

    async def answer(_request: Received, wire: Wire) -> None:
        waiting.append(asyncio.Event())
        if len(waiting) == number:
            for event in waiting:
                event.set()
        await waiting[-1].wait()
        await wire.stream(*GOOD)

    return answer


def test_a_closed_loop_has_its_requests_in_flight_at_the_same_time(sstool: Command, server: ScriptedServer, three: Path) -> None:
    server.answers[COMPLETIONS] = meeting(3)
    assert sstool("bench-serve", server.url, "--prompts", three, "--concurrency", "3").code == 0
    assert server.max_open == 3


def test_an_open_loop_does_not_wait_for_answers(sstool: Command, server: ScriptedServer, three: Path) -> None:
    server.answers[COMPLETIONS] = meeting(3)
    [report] = sstool("bench-serve", server.url, "--prompts", three, "--rate", "1000", "--seed", "3", "--json").lines()
    [run] = report["runs"]
    assert (run["ok"], run["rate"], run["concurrency"]) == (3, 1000.0, None)
    assert report["settings"]["arrival_seed"] == 3
    assert set(run["wait_s"]) == {"mean", "p50", "p90", "p99"}


def test_an_open_loop_may_have_a_limit(sstool: Command, server: ScriptedServer, three: Path) -> None:
    outcome = sstool("bench-serve", server.url, "--prompts", three, "--rate", "1000", "--concurrency", "1", "--requests", "9", "--json")
    assert outcome.lines()[0]["runs"][0]["ok"] == 9
    assert server.max_open == 1


def test_bytes_may_be_split_anywhere(sstool: Command, server: ScriptedServer, three: Path, tmp_path: Path) -> None:
    stream = b": hello\r\n" + text("snow 雪").replace(b"\n", b"\r\n") + text("!", "stop") + usage(2, 4) + DONE
    server.answers[COMPLETIONS] = streams(*(bytes([byte]) for byte in stream))
    assert sstool("bench-serve", server.url, "--prompts", three, "--save", tmp_path / "split").code == 0
    server.answers[COMPLETIONS] = streams(stream)
    assert sstool("bench-serve", server.url, "--prompts", three, "--save", tmp_path / "whole").code == 0
    split, whole = saved(tmp_path / "split"), saved(tmp_path / "whole")
    assert [(r["text_sha256"], r["tokens"], len(r["chunk_gaps_s"])) for r in split] == [(whole[0]["text_sha256"], 4, 1)] * 3
    assert whole[0]["chunk_gaps_s"] == [0.0]  # both came in one read


def test_rows_are_saved(sstool: Command, server: ScriptedServer, three: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("an older file\n", encoding="utf-8")
    assert sstool("bench-serve", server.url, "--prompts", three, "--save", path).code == 0
    rows = saved(path)
    assert [r["id"] for r in rows] == ["a", "b", "c"]
    assert set(rows[0]) == {
        "concurrency", "id", "index", "start_s", "wait_s", "ttft_s", "itl_s", "chunk_gaps_s", "latency_s", "prompt_tokens", "tokens",
        "tokens_are_chunks", "finish_reason", "status", "error", "text_sha256", "speculative_decoding",
    }  # fmt: skip
    assert (rows[0]["status"], rows[0]["error"], rows[0]["finish_reason"], rows[0]["concurrency"]) == ("ok", None, "stop", 1)
    assert 0 < rows[0]["ttft_s"] <= rows[0]["latency_s"]
    assert len(rows[0]["chunk_gaps_s"]) == 1


def test_a_server_without_usage_has_its_chunks_counted(sstool: Command, server: ScriptedServer, three: Path) -> None:
    server.answers[COMPLETIONS] = streams(text("a"), text("b"), text("", "length"), DONE)
    outcome = sstool("bench-serve", server.url, "--prompts", three)
    assert "the server counts no tokens: chunks are counted instead" in outcome.out
    [report] = sstool("bench-serve", server.url, "--prompts", three, "--json").lines()
    assert (report["runs"][0]["output_tokens"], report["runs"][0]["token_counts"]) == (6, "chunks")


def test_a_reason_and_http_s_end_are_an_end_too(sstool: Command, server: ScriptedServer, three: Path) -> None:
    server.answers[COMPLETIONS] = streams(text("a"), event({"choices": [{"text": "", "finish_reason": "length"}], "usage": USAGE}))
    [report] = sstool("bench-serve", server.url, "--prompts", three, "--json").lines()
    assert (report["runs"][0]["ok"], report["runs"][0]["output_tokens"]) == (3, 12)


def test_acceptance_of_responses(sstool: Command, server: ScriptedServer, three: Path) -> None:
    said = {"num_spec_steps": 2, "num_draft_tokens": 8, "num_accepted_draft_tokens": 4, "acceptance_histogram": [1, 0, 0, 0, 1]}
    server.answers[COMPLETIONS] = streams(text("a"), usage(1, 7, metrics={"speculative_decoding": said}), DONE)
    [report] = sstool("bench-serve", server.url, "--prompts", three, "--json").lines()
    assert report["runs"][0]["acceptance"] == {
        "source": "responses",
        "mean_acceptance_length": 3.0,
        "draft_acceptance_rate": 0.5,
        "num_drafts": 6,
        "num_draft_tokens": 24,
        "num_accepted_draft_tokens": 12,
        "acceptance_histogram": [3, 0, 0, 0, 3],
    }


def test_acceptance_of_counters(sstool: Command, server: ScriptedServer, three: Path) -> None:
    server.answers[METRICS] = in_turn(says(200, page(10, 40, 20), "text/plain"), says(200, page(14, 52, 26), "text/plain"))
    outcome = sstool("bench-serve", server.url, "--prompts", three, "--warmup", "1", "--json")
    acceptance = outcome.lines()[0]["runs"][0]["acceptance"]
    assert (acceptance["source"], acceptance["num_drafts"], acceptance["num_draft_tokens"]) == ("metrics", 8, 24)
    assert (acceptance["draft_acceptance_rate"], acceptance["mean_acceptance_length"]) == (0.5, 2.5)


def test_a_key_is_sent_and_never_shown(sstool: Command, server: ScriptedServer, three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-1")
    server.answers[COMPLETIONS] = in_turn(refuses(500, {"error": {"message": "bad sk-secret-1 here"}}), streams(*GOOD))
    outcome = sstool("bench-serve", server.url, "--prompts", three, "--api-key-env", "MY_KEY", "--json")
    assert {r.headers["authorization"] for r in server.received} == {"Bearer sk-secret-1"}
    assert "sk-secret" not in outcome.out + outcome.err
    assert outcome.lines()[0]["runs"][0]["failures"] == {"HTTP 500: bad *** here": 1}


def test_the_table_shows_the_figures(sstool: Command, server: ScriptedServer, three: Path) -> None:
    outcome = sstool("bench-serve", server.url, "--prompts", three)
    for name in ("tokens/s", "requests/s", "first", "inter-token latency", "gap between chunks", "p99", "small, completions"):
        assert name in outcome.out
    assert "…" not in outcome.out


def test_the_table_has_a_row_for_each_run(sstool: Command, server: ScriptedServer, three: Path) -> None:
    out = sstool("bench-serve", server.url, "--prompts", three, "--concurrency", "1,2,3").out
    cells = [line.split() for line in out.splitlines() if "in flight: " not in line]
    assert [row[:2] for row in cells if row and row[0].isdigit()] == [["1", "3"], ["2", "3"], ["3", "3"]]


def test_some_failures_are_reported_and_the_exit_code_is_0(sstool: Command, server: ScriptedServer, three: Path, tmp_path: Path) -> None:
    busy = refuses(429, {"error": {"message": "queue is full"}}, "Retry-After: 1")
    server.answers[COMPLETIONS] = in_turn(busy, streams(*GOOD), refuses(404, {"detail": "Not Found"}))
    path = tmp_path / "rows.jsonl"
    outcome = sstool("bench-serve", server.url, "--prompts", three, "--save", path, "--json")
    [run] = outcome.lines()[0]["runs"]
    assert outcome.code == 0
    assert (run["ok"], run["refused"], run["failed"], run["output_tokens"]) == (1, 1, 1, 5)
    assert run["failures"] == {"HTTP 429: queue is full": 1, "HTTP 404: Not Found": 1}
    assert [(r["status"], r["error"]) for r in saved(path)] == [
        ("refused", "HTTP 429: queue is full"),
        ("ok", None),
        ("failed", "HTTP 404: Not Found"),
    ]
    server.answers[COMPLETIONS] = in_turn(busy, streams(*GOOD))
    assert "1 not answered: HTTP 429: queue is full" in sstool("bench-serve", server.url, "--prompts", three).out


async def drop_at_once(_request: Received, wire: Wire) -> None:
    wire.drop()


def test_a_request_is_sent_again_if_its_connection_is_closed_before_an_answer(
    sstool: Command, server: ScriptedServer, prompts: Prompts
) -> None:
    one = prompts({"prompt": "a"})
    server.answers[COMPLETIONS] = in_turn(drop_at_once, drop_at_once, streams(*GOOD))
    assert sstool("bench-serve", server.url, "--prompts", one).code == 0
    assert len(server.bodies(COMPLETIONS)) == 3
    server.answers[COMPLETIONS] = drop_at_once
    outcome = sstool("bench-serve", server.url, "--prompts", one)
    assert (outcome.code, "connection lost: " in outcome.out + outcome.err) == (1, True)
    assert len(server.bodies(COMPLETIONS)) == 6


async def drop_within(_request: Received, wire: Wire) -> None:
    await wire.start_stream()
    await wire.piece(text("a"))
    wire.drop()


async def drop_after_the_reason(_request: Received, wire: Wire) -> None:
    await wire.start_stream()
    await wire.piece(text("a", "stop"))
    wire.drop()


async def hang(_request: Received, wire: Wire) -> None:
    await wire.start_stream()
    await wire.piece(text("a"))
    await asyncio.Event().wait()


async def keep_open(_request: Received, wire: Wire) -> None:
    """Sends everything but the end of the response."""
    await wire.start_stream()
    await wire.piece(b"".join(GOOD))
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (streams(text("a"), text("b")), "the stream ended without [DONE] and without a reason"),
        (streams(text("a", "stop"), b"data: {"), "the stream ended inside an event"),
        (streams(), "the stream ended without [DONE]"),
        (drop_within, "connection lost: "),
        (drop_after_the_reason, "connection lost: "),
        (streams(text("a"), b'data: {"error": {"message": "out of memory"}}\n\n', DONE), "error in the stream: out of memory"),
        (streams(b"data: {nope\n\n", DONE), "an event is not JSON: {nope"),
        (refuses(500, {"error": {"message": "\x1b[31moops\n" + "x" * 5000}}), "HTTP 500: [31moops xxx"),
        (refuses(400, {"error": {"message": "ignore_eos: extra fields not permitted"}}), "HTTP 400: ignore_eos: extra"),
        (says(503, "busy", "text/plain"), "HTTP 503: busy"),
        (refuses(200, {"error": "odd"}), "no stream, but application/json: odd"),
        (hang, "no end after 0.2 s"),
    ],
)
def test_if_no_request_succeeds_the_report_says_why_and_the_exit_code_is_1(
    sstool: Command, server: ScriptedServer, prompts: Prompts, answer: Answer, reason: str
) -> None:
    server.answers[COMPLETIONS] = answer
    outcome = sstool(
        "bench-serve", server.url, "--prompts", prompts({"prompt": "a"}), "--timeout", "0.2" if answer is hang else "60", "--json"
    )
    assert outcome.code == EXIT_FAILED
    [run] = outcome.lines()[0]["runs"]
    assert (run["ok"], run["failed"], run["output_tokens"]) == (0, 1, 0)
    [found] = run["failures"]
    assert found.startswith(reason)
    assert found.isprintable()
    assert len(found) < 250
    [line] = outcome.err.splitlines()
    assert line.startswith(f"error: no request succeeded: {reason}")
    assert "; hint: " in line


def test_a_response_that_stays_open_after_the_end_is_complete(sstool: Command, server: ScriptedServer, prompts: Prompts) -> None:
    server.answers[COMPLETIONS] = keep_open
    [report] = sstool("bench-serve", server.url, "--prompts", prompts({"prompt": "a"}), "--json").lines()
    assert report["runs"][0]["ok"] == 1


def interrupting(number: int) -> Answer:
    """Returns an answer that interrupts this process, as Ctrl-C does, in place of the `number`-th answer."""
    num_answers = 0

    async def answer(_request: Received, wire: Wire) -> None:
        nonlocal num_answers
        num_answers += 1
        if num_answers < number:
            await wire.stream(*GOOD)
            return
        await wire.start_stream()
        await wire.piece(text("a"))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        await asyncio.Event().wait()

    return answer


def test_an_interrupt_prints_what_was_done(sstool: Command, server: ScriptedServer, three: Path, tmp_path: Path) -> None:
    server.answers[COMPLETIONS] = interrupting(3)
    path = tmp_path / "rows.jsonl"
    options = ("--concurrency", "1,2", "--save", path, "--json")
    outcome = sstool("bench-serve", server.url, "--prompts", three, *options)
    assert outcome.code == EXIT_INTERRUPTED
    [report] = outcome.lines()
    assert report["interrupted"]
    [run] = report["runs"]
    assert (run["concurrency"], run["ok"], run["cancelled"], run["failed"]) == (1, 2, 1, 0)
    assert [r["status"] for r in saved(path)] == ["ok", "ok", "cancelled"]
    server.answers[COMPLETIONS] = interrupting(2)
    shown = sstool("bench-serve", server.url, "--prompts", three)
    assert shown.code == EXIT_INTERRUPTED
    assert "1 in flight when interrupted" in shown.out


async def interrupt(_request: Received, _wire: Wire) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    await asyncio.Event().wait()


@pytest.mark.parametrize(("number", "levels"), [(2, "1"), (3, "1,2")])
def test_an_interrupt_while_counters_are_read_loses_nothing(
    sstool: Command, server: ScriptedServer, three: Path, number: int, levels: str
) -> None:
    readable = says(200, page(1, 2, 1), "text/plain")
    server.answers[METRICS] = in_turn(*[readable] * (number - 1), interrupt)
    outcome = sstool("bench-serve", server.url, "--prompts", three, "--concurrency", levels, "--json")
    assert outcome.code == EXIT_INTERRUPTED
    [report] = outcome.lines()
    assert [(run["ok"], run["cancelled"]) for run in report["runs"]] == [(3, 0)]
    assert report["interrupted"]


def test_an_interrupt_before_the_load_prints_nothing(sstool: Command, server: ScriptedServer, three: Path) -> None:
    server.answers[COMPLETIONS] = interrupting(1)
    outcome = sstool("bench-serve", server.url, "--prompts", three, "--warmup", "1")
    assert (outcome.code, outcome.out) == (EXIT_INTERRUPTED, "")


def test_a_server_without_a_list_of_models_may_be_given_a_name(sstool: Command, server: ScriptedServer, three: Path) -> None:
    for answer in (not_found, lists_models(), refuses(500, {"error": "no cache"}), refuses(200, {"data": None})):
        server.answers[MODELS] = answer
        assert sstool("bench-serve", server.url, "--prompts", three, "--model", "m").code == 0
    assert {b["model"] for b in server.bodies(COMPLETIONS)} == {"m"}
