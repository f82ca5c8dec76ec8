"""Measures how an artifact's engines and a host program's own ONNX Runtime session affect each other.

    python tests/peers/beside_host.py --artifact ARTIFACT [--threads 2] [--repeat 5]

Both are in one process. The host's session is a small stack of matrix products. Except for the number of
threads, it has ONNX Runtime's default options.

The run time of the host's session is measured in four situations: alone; while our engine is loaded and idle;
between the steps of our decoding; and between reads of as much memory as the weights take. The last one is a
control, as decoding also fills the CPU's caches.

The speed of our decoding is measured in three situations: without the host's session; beside it; and beside
a host's session whose threads do not spin. By default, the threads of a session spin after each run, on the
cores that our next step needs.

Prints a table on stderr and one JSON object on stdout, both with medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ssruntime import Engine, GenerationConfig, load
from sstool.bench.environment import describe_environment

WIDTH = 768
LAYERS = 4
PROMPT = "def area(radius):"


def host_session(threads: int, *, spins: bool) -> ort.InferenceSession:
    """Returns the host's session: `LAYERS` matrix products with weights float32[WIDTH, WIDTH].

    Args:
        threads: number of threads of the session.
        spins: whether the threads spin between runs, as by default.
    """
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32), f"w{i}") for i in range(LAYERS)
    ]
    nodes = [helper.make_node("MatMul", ["x" if i == 0 else f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(LAYERS)]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16, WIDTH]) for name in ("x", f"x{LAYERS}")]
    graph = helper.make_graph(nodes, "host", value[:1], value[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if not spins:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Host:
    """The host program, which runs its session and times the runs."""

    def __init__(self, threads: int, *, spins: bool = True) -> None:
        self._session = host_session(threads, spins=spins)
        self._input = np.random.default_rng(1).standard_normal((16, WIDTH)).astype(np.float32)
        self.times: list[float] = []

    def run(self) -> NDArray[np.float32]:
        """Returns the output of one run, and records its time."""
        begun = time.perf_counter()
        (output,) = self._session.run(None, {"x": self._input})
        self.times.append(time.perf_counter() - begun)
        return np.asarray(output)

    def measure(self, times: int, between: Callable[[], object] | None = None) -> float:
        """Returns the median milliseconds of a run; `between` is called before each run."""
        self.times.clear()
        for _ in range(times):
            if between is not None:
                between()
            self.run()
        return 1e3 * statistics.median(self.times)


def decode(engine: Engine, num_tokens: int, on_step: Callable[[], object] | None = None) -> float:
    """Returns tokens/s of speculative decoding; `on_step` is called after each step and not timed."""
    config = GenerationConfig(max_new_tokens=num_tokens, temperature=0.8, top_p=0.95, seed=0, ignore_eos=True)
    for chunk in engine.stream(PROMPT, config):
        if chunk.stats is not None:
            return chunk.stats.tokens_per_second() or 0.0
        if on_step is not None:
            on_step()
    raise AssertionError("a stream ends with statistics")


def measure_once(artifact: Path, threads: int, num_tokens: int, runs: int) -> tuple[dict[str, float], bool]:
    """Returns the figures of one repeat, and whether the host's outputs stayed bit-identical."""
    figures: dict[str, float] = {}
    host = Host(threads)
    before = host.run()
    host.measure(runs)
    figures["host_ms_alone"] = host.measure(runs)
    with load(artifact, threads=threads, max_sequences=1, prefix_cache=0) as engine:
        decode(engine, 32)
        figures["host_ms_engine_idle"] = host.measure(runs)
        host.times.clear()
        figures["decode_beside_host"] = decode(engine, num_tokens, host.run)
        figures["host_ms_between_steps"] = 1e3 * statistics.median(host.times)
        traffic = np.ones((artifact / "weights.bin").stat().st_size // 4, dtype=np.float32)
        figures["host_ms_between_reads"] = host.measure(len(host.times), traffic.sum)
        del traffic
        same = bool(np.array_equal(before, host.run()))
        del host
        quiet = Host(threads, spins=False)
        decode(engine, 32, quiet.run)
        figures["decode_beside_quiet_host"] = decode(engine, num_tokens, quiet.run)
        del quiet
        decode(engine, 32)
        figures["decode_without_host"] = decode(engine, num_tokens)
    return figures, same


def main() -> None:
    """Measures all situations and prints the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--artifact", type=Path, required=True, help="artifact to decode with")
    parser.add_argument("--threads", type=int, default=2, help="threads of our engine, and of the host's session")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="tokens of each measured decoding")
    parser.add_argument("--runs", type=int, default=200, help="runs of the host's session, alone and beside the idle engine")
    parser.add_argument("--repeat", type=int, default=5, help="repeats of all measurements")
    args = parser.parse_args()
    rounds = [measure_once(args.artifact, args.threads, args.max_new_tokens, args.runs) for _ in range(args.repeat)]
    medians = {name: statistics.median(figures[name] for figures, _ in rounds) for name in rounds[0][0]}
    with load(args.artifact, threads=args.threads, max_sequences=1, prefix_cache=0) as engine:
        environment = describe_environment(engine).to_json()
    result = {"environment": environment, "repeat": args.repeat, **medians, "host_outputs_identical": all(same for _, same in rounds)}
    sys.stdout.write(json.dumps(result) + "\n")
    alone = medians["host_ms_alone"]
    sys.stderr.write(f"{environment['cpu']}, {args.threads} threads each, medians of {args.repeat}\n")
    for name, value in medians.items():
        unit = f"ms, x {value / alone:.2f}" if name.startswith("host") else "tokens/s"
        sys.stderr.write(f"{name.replace('_', ' '):<24} {value:8.3f} {unit}\n")
    sys.stderr.write(f"the host's outputs are {'bit-identical' if result['host_outputs_identical'] else 'CHANGED'}\n")


if __name__ == "__main__":
    main()
