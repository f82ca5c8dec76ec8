"""Checks an artifact: digests of its files, parity with its checkpoint, losslessness and memory."""

from __future__ import annotations

from sstool.check.prompts import PromptFile, built_in_prompts
from sstool.check.report import CheckReport, CheckSection, LosslessnessReport
from sstool.check.run import CheckOptions, run_check

__all__ = ["CheckOptions", "CheckReport", "CheckSection", "LosslessnessReport", "PromptFile", "built_in_prompts", "run_check"]
