"""Other engines beside ours in a bench: one real engine, and programs that fail in every way."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click
import pytest

from ssruntime import ConfigError, GenerationConfig, load
from sstool.bench import BenchOptions, open_peers, run_bench
from sstool.bench.peers import PEERS, Peer, PeerError, PeerProcess, PeerSetup, PeerTask, parse_peers
from sstool.cli.bench import command
from sstool.prompts import PromptRecord

GREEDY = GenerationConfig(max_new_tokens=12, temperature=0.0)
TASK = PeerTask(ids=[1, 2], tokens=3, temperature=0.0, top_p=1.0, seed=0)
READY = 'print(json.dumps({"version": "1"}), flush=True)'


@pytest.fixture
def setup(tmp_path: Path) -> PeerSetup:
    return PeerSetup(model=tmp_path, key="key", dtype="fp32", threads=1)


def program(folder: Path, body: str) -> Peer:
    """Returns a peer whose program reads one line and then runs `body`."""
    path = folder / "program.py"
    path.write_text(f"import json, sys\nsys.stdin.readline()\n{body}\n")
    return Peer(engine="scripted", worker=str(path), package="none", requirements=(), dtypes=frozenset({"fp32"}))


def test_transformers_decodes_the_same_greedy_text(demo_artifact: Path, demo_model: Path) -> None:
    prompts = [PromptRecord(id=f"p{i}", prompt=text, index=i) for i, text in enumerate(("def area(radius):", "import os"))]
    with load(demo_artifact, threads=1) as engine, open_peers(engine, ("hf", "hf-lookup"), demo_model) as peers:
        report = run_bench(engine, prompts, GREEDY, BenchOptions(repeat=2), peers=peers)
    assert [(peer.name, peer.missing, peer.same_text) for peer in report.peers] == [("hf", None, 2), ("hf-lookup", None, 2)]
    for peer in report.peers:
        assert peer.version is not None
        assert peer.ours_over_this is not None
        assert peer.tokens_per_second is not None
        assert peer.prefill_s is not None
    assert {row.tokens for row in report.per_prompt} == {11}


def test_sampled_text_is_not_compared(demo_artifact: Path, demo_model: Path) -> None:
    prompts = [PromptRecord(id="p", prompt="def area(radius):", index=0)]
    config = dataclasses.replace(GREEDY, temperature=0.8, top_p=0.95, seed=1)
    with load(demo_artifact, threads=1) as engine, open_peers(engine, ("hf",), demo_model) as peers:
        report = run_bench(engine, prompts, config, BenchOptions(repeat=1), peers=peers)
        with pytest.raises(ConfigError, match="--top-k cannot be used with --against: not every engine has it"):
            run_bench(engine, prompts, dataclasses.replace(config, top_k=5), BenchOptions(repeat=1), peers=peers)
    assert report.peers[0].same_text is None
    assert report.to_json()["peers"]


@pytest.mark.parametrize("name", ["openvino", "llamacpp"])
def test_what_is_not_installed_says_how_to_install_it(setup: PeerSetup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "cache"))
    engine = PEERS[name].engine
    with pytest.raises(PeerError, match=rf"not installed; python3 -m venv .*cache/peers/{engine}/environment && .*pip install {engine}=="):
        PeerProcess(PEERS[name], setup)


@pytest.mark.parametrize(("name", "dtype"), [("hf", "int8"), ("llamacpp", "int4")])
def test_precisions_that_a_peer_lacks_are_missing(setup: PeerSetup, name: str, dtype: str) -> None:
    with pytest.raises(PeerError, match=f"has no {dtype} weights"):
        PeerProcess(PEERS[name], dataclasses.replace(setup, dtype=dtype))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit('no such model')", "its process ended: no such model"),
        ("print('hello', flush=True)", "its answer is not JSON"),
        ("print('[1]', flush=True)", "its answer is not a JSON object"),
        ('print(json.dumps({"error": "ValueError: bad"}), flush=True)', "ValueError: bad"),
    ],
)
def test_a_peer_that_does_not_start_says_why(setup: PeerSetup, tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(PeerError, match=message):
        PeerProcess(program(tmp_path, body), setup)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{READY}; sys.stdin.readline()", "its process ended"),
        (f'{READY}; sys.stdin.readline(); print(json.dumps({{"ids": [1], "first": 1, "prefill_s": 1, "decode_s": 1}}))', "gave 1 tokens"),
        (f'{READY}; sys.stdin.readline(); print(json.dumps({{"ids": [1, 2, 3]}}))', "its answer lacks 'decode_s'"),
    ],
)
def test_a_peer_that_fails_later_says_why(setup: PeerSetup, tmp_path: Path, body: str, message: str) -> None:
    with PeerProcess(program(tmp_path, body), setup) as peer, pytest.raises(PeerError, match=message):
        peer.decode(TASK)


def test_another_checkpoint_is_refused(demo_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
    with load(demo_artifact, threads=1) as engine:
        with pytest.raises(ConfigError, match="num_hidden_layers 3, the artifact"), open_peers(engine, ("hf",), tmp_path):
            pass
        with pytest.raises(ConfigError, match="not the folder of a checkpoint"), open_peers(engine, ("hf",), tmp_path / "none"):
            pass


@pytest.mark.parametrize("text", ["", "hf,", "hf,hf", "llama"])
def test_bad_lists_of_peers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown peer|named twice"):
        parse_peers(text)


def test_every_peer_has_a_program_and_is_named_in_the_help() -> None:
    assert ", ".join(PEERS) in next(p.help or "" for p in command.params if isinstance(p, click.Option) and p.name == "against")
    assert all(peer.program.is_file() for peer in PEERS.values())
    assert PEERS["hf"].python == Path(sys.executable)
