"""Whether an artifact is what it claims: digests, parity with its checkpoint, losslessness and memory."""

from __future__ import annotations

from sstool.check.prompts import PromptFile, built_in_prompts
from sstool.check.report import CheckReport, LosslessnessReport, Section
from sstool.check.run import CheckOptions, run_check

__all__ = ["CheckOptions", "CheckReport", "LosslessnessReport", "PromptFile", "Section", "built_in_prompts", "run_check"]
