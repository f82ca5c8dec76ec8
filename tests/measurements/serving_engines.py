"""The servers that `serving_peers` loads, and how each is started so that all do the same work."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import httpx2
from tokenizers import Tokenizer

from ssruntime.artifact import CHECKPOINT_CONFIG, TOKENIZER, TOKENIZER_CONFIG, read_artifact
from sstool.bench.peers import PEERS, PeerError
from sstool.bench_serve import Distribution, LoadReport, ServeBenchOptions, ServerError, run_bench_serve
from sstool.prompts import PromptRecord

_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 30.0
_LOAD_SECONDS: Final = 3600.0
_WARM_UP_TOKENS: Final = 8
_KV_STEP: Final = 256
"""llama.cpp rounds contexts up to this, and it is the page of transformers."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every engine is to do.

    Attributes:
        artifact: our artifact; its digest names the converted models of the others.
        model: the checkpoint.
        texts: the prompts.
        callers: numbers of callers, in ascending order; servers get as many places as the last.
        waves: requests for each caller; few callers send eight in all.
        tokens: tokens of each output.
        threads: threads of each engine.
    """

    artifact: Path
    model: Path
    texts: Sequence[str]
    callers: tuple[int, ...]
    waves: int
    tokens: int
    threads: int
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0

    def requests(self, callers: int) -> int:
        """Returns the number of requests at a number of callers."""
        return max(8, self.waves * callers)

    def ids(self) -> list[list[int]]:
        """Returns the tokens of the prompts."""
        tokenizer = Tokenizer.from_file(str(self.artifact / TOKENIZER))
        return [tokenizer.encode(text).ids for text in self.texts]

    def room(self) -> int:
        """Returns the tokens that the longest prompt and its output take, rounded up."""
        longest = max(len(ids) for ids in self.ids()) + self.tokens
        return -(-longest // _KV_STEP) * _KV_STEP

    def converted(self, peer: str) -> Path:
        """Returns the converted model that `sstool bench --against` has left.

        Raises:
            PeerError: if there is none.
        """
        manifest = read_artifact(self.artifact).manifest
        folder = PEERS[peer].folder / "models" / f"{manifest.weights_digest[:16]}-{manifest.dtype}"
        if not folder.is_dir():
            raise PeerError(f"no converted model; run once: sstool bench ARTIFACT --against {peer} --model CHECKPOINT --prompts FILE")
        return folder


@dataclass(frozen=True, kw_only=True)
class Level:
    """What an engine did at a number of callers. Times are seconds, medians over requests."""

    callers: int
    tokens_per_second: float
    ttft_s: float | None
    itl_s: float | None
    requests: int
    output_tokens: int
    prompt_tokens: int | None
    ends: dict[str, int]


class Engine(Protocol):
    """Something that can be measured."""

    def measure(self) -> list[Level]:
        """Starts the engine, loads it at each number of callers, and stops it.

        Raises:
            PeerError: if it cannot be measured.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server with OpenAI's API. The command takes its port at the end."""

    command: tuple[str, ...]
    job: Job
    model: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    takes_ids: bool = True
    ignores_eos: bool = True

    def measure(self) -> list[Level]:
        """Starts the server, loads it, and stops it.

        Raises:
            PeerError: if it does not start, or does not answer as it should.
        """
        job = self.job
        prompts: Sequence[str | tuple[int, ...]] = [tuple(ids) for ids in job.ids()] if self.takes_ids else job.texts
        records = [PromptRecord(id=str(at), prompt=prompt, index=at) for at, prompt in enumerate(prompts)]
        how = ServeBenchOptions(model=self.model, temperature=job.temperature, top_p=job.top_p, seed=job.seed, ignore_eos=self.ignores_eos)
        levels = []
        with self._running() as url:
            for callers in job.callers:
                now = dataclasses.replace(how, concurrency=(callers,), requests=callers, max_tokens=_WARM_UP_TOKENS)
                try:
                    run_bench_serve(url, records, now)
                    measured = dataclasses.replace(now, requests=job.requests(callers), max_tokens=job.tokens)
                    levels.append(_level(callers, run_bench_serve(url, records, measured).runs[0]))
                except ServerError as err:
                    raise PeerError(str(err)) from err
        return levels

    @contextlib.contextmanager
    def _running(self) -> Iterator[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(self.job.threads), **dict(self.environment)}
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen([*self.command, str(port)], stdout=log, stderr=log, env=environment)
            try:
                if not _is_ready(process, f"http://127.0.0.1:{port}/health"):
                    log.seek(0)
                    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise PeerError(f"does not start: {''.join(last)[:300]}")
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """An engine that is used without a server: its process keeps requests in flight."""

    python: Path
    program: str
    """File beside this one that the process runs."""
    folder: Path
    job: Job

    def measure(self) -> list[Level]:
        """Runs the load in the environment of the engine.

        Raises:
            PeerError: if it fails.
        """
        job = self.job
        wanted: dict[str, Any] = {
            **{name: getattr(job, name) for name in ("tokens", "threads", "temperature", "top_p", "seed")},
            "model": str(self.folder),
            "ids": job.ids(),
            "warm_up_tokens": _WARM_UP_TOKENS,
            "levels": [[callers, job.requests(callers)] for callers in job.callers],
        }
        program = str(Path(__file__).with_name(self.program))
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        done = subprocess.run(
            [str(self.python), program],
            input=json.dumps(wanted),
            capture_output=True,
            text=True,
            env=environment,
            timeout=_LOAD_SECONDS,
            check=False,
        )
        if done.returncode:
            raise PeerError(f"its process ended: {''.join(done.stderr.strip().splitlines()[-1:])[:300]}")
        return [_pipeline_level(answer) for answer in json.loads(done.stdout.strip().splitlines()[-1])]


def ours(job: Job, *options: str) -> Server:
    """Returns our server."""
    command = (str(Path(sys.executable).with_name("sstool")), "serve", str(job.artifact), "--threads", str(job.threads))
    return Server(command=(*command, "--max-sequences", str(job.callers[-1]), "--prefix-cache", "0", *options, "--port"), job=job)


def our_engine(job: Job) -> Pipeline:
    """Returns our engine without the server."""
    return Pipeline(python=Path(sys.executable), program="engine_load.py", folder=job.artifact, job=job)


def llama_server(job: Job, program: Path) -> Server:
    """Returns llama.cpp's server with keys and values in fp32, which keeps nothing of earlier prompts."""
    places = job.callers[-1]
    model = ("-m", str(job.converted("llamacpp") / "model.gguf"), "-ctk", "f32", "-ctv", "f32")
    sizes = ("-t", str(job.threads), "-np", str(places), "-c", str(places * job.room()))
    how = ("--no-cache-prompt", "--cache-ram", "0", "--no-webui", "--samplers", "temperature;top_p")
    return Server(command=(_program(program), *model, *sizes, *how, "--port"), job=job)


def transformers_serve(job: Job, program: Path, scratch: Path) -> Server:
    """Returns `transformers serve` with continuous batching.

    It refuses `ignore_eos`, and samples only if the checkpoint says so. So it gets the checkpoint with a
    generation_config.json of its own, which names no token that ends the text.
    """
    if read_artifact(job.artifact).manifest.dtype != "fp32":
        raise PeerError("only fp32 can be compared")
    for path in (CHECKPOINT_CONFIG, TOKENIZER, TOKENIZER_CONFIG, *(p.name for p in job.model.glob("*.safetensors*"))):
        (scratch / path).symlink_to((job.model / path).absolute())
    sampling = {"do_sample": True, "temperature": job.temperature, "top_p": job.top_p, "top_k": 0}
    (scratch / "generation_config.json").write_text(json.dumps(sampling), encoding="utf-8")
    pages = 2 * job.callers[-1] * (job.room() // _KV_STEP)  # without a number it takes most of the memory
    how = ("--continuous-batching", "--device", "cpu", "--dtype", "float32", "--cb-num-blocks", str(pages))
    command = (_program(program), "serve", str(scratch), *how, "--host", "127.0.0.1", "--port")
    environment = (("HF_HUB_CACHE", str(scratch)),)
    return Server(command=command, job=job, model=str(scratch), environment=environment, takes_ids=False, ignores_eos=False)


def openvino(job: Job, python: Path) -> Pipeline:
    """Returns OpenVINO GenAI's pipeline."""
    return Pipeline(python=Path(_program(python)), program="openvino_load.py", folder=job.converted("openvino"), job=job)


def _program(path: Path) -> str:
    if not path.is_file():
        raise PeerError(f"not installed: there is no {path.name} where the options say")
    return str(path.absolute())


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(url, timeout=5.0, trust_env=False).status_code == httpx2.codes.OK:
                return True
        time.sleep(0.2)
    return False


def _level(callers: int, run: LoadReport) -> Level:
    return Level(
        callers=callers,
        tokens_per_second=run.output_tokens_per_second,
        ttft_s=None if run.ttft_s is None else run.ttft_s.p50,
        itl_s=None if run.itl_s is None else run.itl_s.p50,
        requests=run.ok,
        output_tokens=run.output_tokens,
        prompt_tokens=run.prompt_tokens,
        ends={**run.finish_reasons, **run.failures},
    )


def _pipeline_level(answer: dict[str, Any]) -> Level:
    rows = answer["rows"]
    first, between = (Distribution.of([row[name] for row in rows]) for name in ("ttft_s", "itl_s"))
    tokens = sum(row["tokens"] for row in rows)
    return Level(
        callers=answer["callers"],
        tokens_per_second=tokens / answer["wall_s"],
        ttft_s=None if first is None else first.p50,
        itl_s=None if between is None else between.p50,
        requests=len(rows),
        output_tokens=tokens,
        prompt_tokens=sum(row["prompt_tokens"] for row in rows),
        ends={"length": len(rows)},
    )
