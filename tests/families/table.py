"""Measures every family and prints the table of `tests/README.md`: `python -m tests.families.table`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.families.checkpoints import FAMILIES, make_checkpoint
from tests.families.proof import Proof, prove

NOTES: Final = {
    "exaone4": "RoPE in layers with a window only",
    "gemma2": "windows in every other layer, soft caps",
    "gemma3_text": "windows in five of six layers, two RoPEs, norms of queries and keys",
    "gpt2": "learned positions",
    "granite": "four scales",
    "mixtral": "every expert is computed; the MLP sublayer is all of them",
    "olmo2": "norms after the sublayers",
    "olmo3": "windows in three of four layers, norms after the sublayers",
    "qwen2": "windows from a layer on",
    "qwen3": "norms of queries and keys",
    "smollm3": "no RoPE in every fourth layer",
    "qwen3_moe": "every expert is computed; the MLP sublayer is all of them",
}


def main() -> None:
    """Measures both shapes of every family and prints a row for each; exits with 1 if a family fails."""
    print("| family | parity | draft parity | differing bits | identical | greedy text | notes |\n|---|---|---|---|---|---|---|")
    failed = []
    for family in sorted(FAMILIES):
        with tempfile.TemporaryDirectory() as name:
            models = [make_checkpoint(Path(name) / f"model-{shape}", family, shape) for shape in (0, 1)]
            proofs = [prove(model, Path(name) / f"out-{shape}") for shape, model in enumerate(models)]
        print(line(family, proofs), flush=True)
        failed += [family for proof in proofs if not proof.holds]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def line(family: str, proofs: list[Proof]) -> str:
    """Returns a family's row of the table."""
    runs = [verdict for proof in proofs for verdict in proof.identical]
    same = all(proof.untied_difference is None for proof in proofs)
    cells = [
        family,
        f"{max(p.parity for p in proofs):.1e}",
        f"{max(p.draft_parity for p in proofs):.1e}",
        f"{sum(p.bits_differing for p in proofs)} of {sum(p.bits_compared for p in proofs)} rows",
        f"{runs.count('yes')} of {len(runs)}",
        "transformers'" if same else "differs",
        NOTES.get(family, ""),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
