"""`sstool inspect`: shows the model, sizes, skip sets, files and gate of an artifact on one screen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sstool.cli.options import artifact_argument, debug_option, json_option

if TYPE_CHECKING:
    from ssruntime.artifact import DraftEntry, Tuning
    from sstool.artifact_files.describe import ArtifactDescription


@click.command(name="inspect")
@artifact_argument
@json_option
@debug_option
def command(folder: Path, as_json: bool) -> None:
    """Show the content of an artifact."""
    from sstool.artifact_files.describe import describe_artifact

    found = describe_artifact(folder)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    for title, lines in (
        ("model", _model(found)),
        ("memory", _memory(found)),
        *((f"draft {draft.name!r}", _draft(draft, found.manifest.model.num_layers)) for draft in found.manifest.drafts),
        *((("tuning", _tuning(found.manifest.tuning)),) if found.manifest.tuning is not None else ()),
        ("files", _pairs((name, f"{_size(entry.size):>10}  sha256 {entry.sha256[:12]}") for name, entry in found.manifest.files.items())),
        ("gate", _pairs(_flat(found.manifest.gate))),
        ("made with", _pairs(found.manifest.tools.items())),
    ):
        click.secho(title, bold=True)
        for line in lines:
            click.echo(f"  {line}")


def _model(found: ArtifactDescription) -> Iterator[str]:
    model = found.manifest.model
    yield from _pairs(
        [
            ("source", model.source + (f" at {model.revision}" if model.revision else "")),
            ("family", f"{model.family} ({model.architecture})"),
            ("sizes", f"{model.num_layers} layers, hidden size {model.hidden_size}, vocabulary {model.vocab_size}"),
            ("parameters", f"{model.num_parameters / 1e6:.1f} M, {found.manifest.dtype}, {_size(model.weight_bytes)}"),
            ("target", found.manifest.target),
            ("context", f"{found.manifest.max_context} tokens"),
            ("exactness", found.exactness),
        ]
    )


def _memory(found: ArtifactDescription) -> Iterator[str]:
    kv, layout = found.kv, found.manifest.kv
    shape = f"{layout.num_layers} layers x 2 x {layout.kv_heads} heads x {layout.head_dim}, {layout.dtype}"
    yield from _pairs(
        [
            ("packing", found.packing),
            ("KV cache", f"{_size(kv.bytes_per_token)} a token ({shape})"),
            ("a sequence", f"{_size(kv.bytes_at_default_context)} at the default context of {kv.default_context}"),
            ("", f"{_size(kv.bytes_at_max_context)} at the full context of {found.manifest.max_context}"),
        ]
    )


def _draft(draft: DraftEntry, num_layers: int) -> Iterator[str]:
    skipped = len(draft.skip.attention) + len(draft.skip.mlp)
    alternatives = "the runtime's default" if draft.max_alternatives is None else str(draft.max_alternatives)
    yield from _pairs(
        [
            ("skips", f"{skipped} of {2 * num_layers} sublayers ({len(draft.skip.attention)} attention, {len(draft.skip.mlp)} mlp)"),
            ("layer", _ruler(num_layers)),
            ("attention", skip_strip(draft.skip.attention, num_layers, draft.int4.attention)),
            ("mlp", skip_strip(draft.skip.mlp, num_layers, draft.int4.mlp)),
            ("LM head", "int4" if draft.int4.head else "shared"),
            ("stopping rule", "the runtime's default" if draft.stopping is None else str(draft.stopping)),
            ("alternatives", alternatives),
            ("default mode", draft.mode),
        ]
    )


def _tuning(tuning: Tuning) -> Iterator[str]:
    from sstool.search.log.records import speeds_in_words

    speed = speeds_in_words(tuning.speedups)
    found = f"{tuning.trials} trials on {tuning.cpu}, {tuning.threads} threads, onnxruntime {tuning.onnxruntime}"
    yield from _pairs([("measured", speed or "no draft was faster than autoregressive decoding"), ("search", found), ("", tuning.remark)])


def skip_strip(skipped: Sequence[int], num_layers: int, int4: Sequence[int] = ()) -> str:
    """Returns one character per layer: `.` for a skipped sublayer, `4` for one in int4, else `#`."""
    return "".join("." if layer in skipped else "4" if layer in int4 else "#" for layer in range(num_layers))


def _ruler(num_layers: int) -> str:
    """Returns the line of layer numbers above a strip; every fifth number is written out."""
    ruler = [" "] * (num_layers + 3)
    for layer in range(0, num_layers, 5):
        ruler[layer : layer + len(str(layer))] = str(layer)
    return "".join(ruler).rstrip()


def _pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    rows = list(pairs)
    width = max((len(name) for name, _ in rows), default=0)
    return (f"{name:<{width}}  {value}" for name, value in rows)


def _flat(data: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value:.3g}" if isinstance(value, float) else str(value)


def _size(num_bytes: int) -> str:
    """Returns a number of bytes as text in decimal units."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{num_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
