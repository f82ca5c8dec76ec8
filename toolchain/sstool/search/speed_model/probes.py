"""The probe drafts that a latency table is fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssruntime.artifact import SkipSet
from sstool.graph.sublayers import Sublayer
from sstool.search.drafts.space import Bits, DraftSpace, bits_of, skips_some


def probe_sets(num_layers: int) -> list[Bits]:
    """Returns the probes' skip sets: `ladder_sets`, and sets that separate attention and MLP costs."""
    layers = range(num_layers)
    # With a single layer, keep one kind alone: with one sublayer of the other kind, nothing would be skipped.
    one = layers[: min(1, num_layers - 1)]
    one_sided = [_keeping(one, layers, num_layers), _keeping(layers, one, num_layers), _keeping(layers, layers[::2], num_layers)]
    ladder = ladder_sets(num_layers)
    return ladder + [bits for bits in dict.fromkeys(one_sided) if bits not in ladder and skips_some(bits)]


def probes_within(space: DraftSpace) -> list[Bits]:
    """Returns the probes' skip sets for own weights: those whose kept parts fit, or a few small ones.

    Costs beyond what fits are of no use, and measuring them would take the memory.
    """
    if not space.has_own_weights:
        return []
    layers = range(space.num_layers)
    places = [*(Sublayer(n, "attention") for n in layers), *(Sublayer(n, "mlp") for n in layers)]
    sizes = np.array([space.sizes.get(place, 0) for place in places])
    by_size = sorted(probe_sets(space.num_layers), key=lambda bits: float(sizes @ (1 - np.array(bits))))
    fitting = [bits for bits in by_size if sizes @ (1 - np.array(bits)) + space.sizes.get(None, 0) <= space.room]
    count = next((n for n in range(1, len(by_size) + 1) if _tells_costs_apart(by_size[:n])), len(by_size))
    return fitting if len(fitting) >= count and _tells_costs_apart(fitting) else by_size[:count]


def _tells_costs_apart(sets: Sequence[Bits]) -> bool:
    """Returns whether the sets give the costs of a draft's base, of attention and of MLPs apart."""
    kept, num_layers = 1 - np.array(sets), len(sets[0]) // 2
    counts = [np.ones(len(sets)), kept[:, :num_layers].sum(axis=1), kept[:, num_layers:].sum(axis=1)]
    return int(np.linalg.matrix_rank(np.stack(counts, axis=1))) == len(counts)


def ladder_sets(num_layers: int) -> list[Bits]:
    """Returns skip sets that keep from few to nearly all sublayers, about as many of each kind.

    A single-layer model has none.
    """
    counts = dict.fromkeys(max(1, round(part * num_layers)) for part in (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4))
    spread = [_keeping(_spread(count, 0, num_layers), _spread(count, 1, num_layers), num_layers) for count in counts if count < num_layers]
    nearly_all = _keeping(range(num_layers), range(num_layers - 1), num_layers)
    return [*spread, *([nearly_all] if num_layers > 1 else [])]


def _spread(count: int, shift: int, num_layers: int) -> list[int]:
    """Returns `count` evenly spaced layers; a `shift` of 1 moves them by half their distance.

    With different shifts for attention and MLP, few layers keep both.
    """
    return [(2 * n + shift) * num_layers // (2 * count) for n in range(count)]


def _keeping(attention: Sequence[int], mlp: Sequence[int], num_layers: int) -> Bits:
    """Returns the skip set that keeps the attention and the MLP of the given layers."""
    layers = range(num_layers)
    return bits_of(SkipSet(attention=tuple(set(layers) - set(attention)), mlp=tuple(set(layers) - set(mlp))), num_layers)
