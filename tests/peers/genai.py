"""Compares the speed of autoregressive decoding with that of onnxruntime-genai on the same checkpoint.

    python tests/peers/genai.py --model CHECKPOINT --artifact ARTIFACT --prompts FILE.jsonl [--block-size 32]

Both decode greedily on the CPU, with the same number of threads, and take turns on each prompt: in fp32, or
with a block size in int4, where both round activations to 8 bits. Ours decodes in mode `plain`. Each prompt
is cut so that it and its output fit into a context of 256 tokens.

Needs the `bench` and `toolchain` extras, as genai's builder reads the checkpoint with transformers. Prints a
table on stderr and one JSON object on stdout, both with medians over the repeats in tokens per second.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime_genai as og

from ssruntime import Engine, GenerationConfig, load
from sstool.bench.environment import describe_environment
from sstool.prompts import read_prompts

CONTEXT = 256


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The token ids that one prompt gave, and the seconds from the first of them to the last."""

    ids: list[int]
    seconds: float


Decode = Callable[[Sequence[int]], Decoded]


def build_genai(model: Path, out: Path, block_size: int | None) -> Path:
    """Builds genai's model in `out` with genai's builder, without a network, and returns `out`."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(out)]
    command += ["-p", "fp32" if block_size is None else "int4", "-e", "cpu", "-c", str(out / "cache")]
    if block_size is not None:
        command += ["--extra_options", f"int4_block_size={block_size}", "int4_accuracy_level=4"]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"onnxruntime-genai's builder failed:\n{done.stderr[-2000:]}")
    return out


def genai_decoder(folder: Path, *, threads: int, num_tokens: int, end: int) -> Decode:
    """Returns genai's greedy decoding.

    Args:
        folder: folder of genai's model.
        threads: number of threads.
        num_tokens: most tokens to decode.
        end: token that ends decoding, as genai needs one.
    """
    config = og.Config(str(folder))
    decoder = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"eos_token_id": end, "pad_token_id": end, "decoder": decoder}}))
    model = og.Model(config)

    def decode(ids: Sequence[int]) -> Decoded:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + num_tokens, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(list(ids))
        generator.generate_next_token()
        begun = time.perf_counter()
        while not generator.is_done():
            generator.generate_next_token()
        seconds = time.perf_counter() - begun
        return Decoded(ids=[int(i) for i in generator.get_sequence(0)][len(ids) :], seconds=seconds)

    return decode


def our_decoder(engine: Engine, num_tokens: int) -> Decode:
    """Returns our greedy decoding in mode `plain`."""
    config = GenerationConfig(max_new_tokens=num_tokens, mode="plain", temperature=0.0, ignore_eos=True)

    def decode(ids: Sequence[int]) -> Decoded:
        completion = engine.generate(ids, config)
        return Decoded(ids=completion.token_ids, seconds=completion.stats.decode_s)

    return decode


def measure(decoders: dict[str, Decode], prompts: Sequence[Sequence[int]], repeat: int) -> tuple[dict[str, list[float]], int]:
    """Runs the decoders on each prompt, one after the other, in alternating order.

    Returns:
        Tokens per second, by decoder and repeat, and the number of prompts for which all decoders gave the
        same tokens.
    """
    speeds: dict[str, list[float]] = {name: [] for name in decoders}
    same = 0
    for number in range(-1, repeat):  # the first pass over the prompts is the warm-up
        tokens, seconds = dict.fromkeys(decoders, 0), dict.fromkeys(decoders, 0.0)
        for turn, ids in enumerate(prompts):
            outputs = []
            for name in list(decoders) if (number + turn) % 2 == 0 else list(decoders)[::-1]:
                decoded = decoders[name](ids)
                tokens[name] += len(decoded.ids) - 1
                seconds[name] += decoded.seconds
                outputs.append(decoded.ids)
            same += number == 0 and all(o == outputs[0] for o in outputs)
        if number >= 0:
            for name in decoders:
                speeds[name].append(tokens[name] / seconds[name])
    return speeds, same


def main() -> None:
    """Measures both decoders and prints the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--artifact", type=Path, required=True, help="artifact of that checkpoint")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts to decode, JSON Lines")
    parser.add_argument("--genai", type=Path, help="folder of genai's model, built if missing; by default a temporary one")
    parser.add_argument("--block-size", type=int, help="compare in int4, with blocks of so many weights")
    parser.add_argument("--threads", type=int, default=2, help="threads of each decoder")
    parser.add_argument("--num-prompts", type=int, default=6, help="number of first prompts of the file to decode")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="tokens to decode after each prompt")
    parser.add_argument("--repeat", type=int, default=5, help="measured passes over the prompts")
    args = parser.parse_args()
    og.disable_telemetry_events()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.genai or Path(scratch)
        if not (folder / "genai_config.json").exists():
            build_genai(args.model, folder, args.block_size)
        with load(args.artifact, threads=args.threads, max_sequences=1, draft=False, prefix_cache=0) as engine:
            room = CONTEXT - args.max_new_tokens
            prompts = [engine.encode(record.prompt.rstrip())[:room] for record in read_prompts(args.prompts)[: args.num_prompts]]
            ours = our_decoder(engine, args.max_new_tokens)
            # Ours ignores EOS. Genai cannot, so its EOS is a token that these texts do not have, and both
            # decode to the full length.
            written = {token for ids in prompts for token in (*ids, *ours(ids).ids)}
            end = next(token for token in range(engine.backend.vocab_size) if token not in written)
            theirs = genai_decoder(folder, threads=args.threads, num_tokens=args.max_new_tokens, end=end)
            decoders = {"sstool": ours, "onnxruntime-genai": theirs}
            speeds, same = measure(decoders, prompts, args.repeat)
            environment = {
                **describe_environment(engine).to_json(),
                "dtype": engine.artifact.manifest.dtype,
                "onnxruntime_genai": importlib.metadata.version("onnxruntime-genai"),
            }
    ratios = [a / b for a, b in zip(speeds["sstool"], speeds["onnxruntime-genai"], strict=True)]
    result = {
        "environment": environment,
        "settings": {"context": CONTEXT, "max_new_tokens": args.max_new_tokens, "prompts": len(prompts), "repeat": args.repeat},
        "tokens_per_second": {name: statistics.median(values) for name, values in speeds.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "same_tokens": same,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stderr.write(
        f"{environment['cpu']}, {args.threads} threads, {environment['dtype']}, greedy, context up to {CONTEXT}\n"
        + "".join(f"{name:<18} {value:7.1f} tokens/s\n" for name, value in result["tokens_per_second"].items())
        + f"sstool / genai     {statistics.median(ratios):7.3f} ({min(ratios):.3f} to {max(ratios):.3f}),"
        + f" same tokens for {same} of {len(prompts)} prompts\n"
    )


if __name__ == "__main__":
    main()
