"""What the comparison of servers reports, with engines that a test makes up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sstool.bench.peers import PeerError
from tests.measurements import serving_peers
from tests.measurements.serving_engines import Engine, Job, Level, Server, llama_server, transformers_serve


class Scripted:
    """An engine with a speed of its own, which fails after some rounds."""

    def __init__(self, speed: float, rounds: int = 9) -> None:
        self._speed, self._left = speed, rounds

    def measure(self) -> list[Level]:
        """Returns one level."""
        self._left -= 1
        if self._left < 0:
            raise PeerError("its process ended: killed")
        row = Level(
            callers=1, tokens_per_second=self._speed, ttft_s=0.1, itl_s=None, requests=8, output_tokens=64, prompt_tokens=9, ends={}
        )
        return [row]


def job(folder: Path) -> Job:
    return Job(artifact=folder, model=folder, texts=("def",), callers=(1,), waves=1, tokens=8, threads=1)


def test_engines_are_compared_with_ours_and_failed_ones_say_why(tmp_path: Path) -> None:
    results: serving_peers.Results = {}
    missing = {"transformers serve": "not installed"}
    engines: dict[str, Engine] = {serving_peers.OURS: Scripted(90.0), "slow": Scripted(30.0), "broken": Scripted(1.0, rounds=1)}
    for _ in range(2):
        for name, engine in engines.items():
            serving_peers._measure(name, engine, results, missing)
    report = serving_peers._report(job(tmp_path), 2, results, missing)
    assert [(row["engine"], row["ours_over_this"], row["tokens_per_request"]) for row in report["rows"]] == [
        (serving_peers.OURS, 1.0, 8.0),
        ("slow", 3.0, 8.0),
    ]
    table = serving_peers._table(report)
    assert "| slow | 1 | 30.0 | 3.00 | 100 ms | - | 8.0 |" in table
    assert "| broken | | its process ended: killed | | | | |" in table
    assert "| transformers serve | | not installed | | | | |" in table


def test_a_server_that_does_not_start_says_why(demo_artifact: Path) -> None:
    server = Server(command=(sys.executable, "-c", "import sys; sys.exit('no such model')"), job=job(demo_artifact))
    with pytest.raises(PeerError, match="does not start: no such model"):
        server.measure()


def test_what_is_not_there_is_said(demo_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="no converted model; run once: sstool bench ARTIFACT --against llamacpp"):
        llama_server(job(demo_artifact), tmp_path / "llama-server")
    with pytest.raises(PeerError, match="not installed: there is no transformers"):
        transformers_serve(job(demo_artifact), tmp_path / "transformers", tmp_path)
