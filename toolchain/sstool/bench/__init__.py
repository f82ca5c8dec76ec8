"""Measures speculative against autoregressive decoding (mode `plain`) on the same prompts."""

from __future__ import annotations

from sstool.bench.measure import BenchOptions, run_bench
from sstool.bench.report import BenchReport, ModeReport, PromptRow, Spread

__all__ = ["BenchOptions", "BenchReport", "ModeReport", "PromptRow", "Spread", "run_bench"]
