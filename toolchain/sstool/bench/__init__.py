"""Plain against speculative decoding, taking turns prompt by prompt, and what the numbers mean."""

from __future__ import annotations

from sstool.bench.measure import BenchOptions, run_bench
from sstool.bench.report import BenchReport, ModeReport, PromptRow, Spread

__all__ = ["BenchOptions", "BenchReport", "ModeReport", "PromptRow", "Spread", "run_bench"]
