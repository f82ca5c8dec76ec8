"""Measures decoding in several modes, and by other engines, on the same prompts."""

from __future__ import annotations

from sstool.bench.against import open_peers
from sstool.bench.measure import BenchOptions, run_bench
from sstool.bench.report import BenchReport, ModeReport, PeerReport, PromptRow, Spread

__all__ = ["BenchOptions", "BenchReport", "ModeReport", "PeerReport", "PromptRow", "Spread", "open_peers", "run_bench"]
