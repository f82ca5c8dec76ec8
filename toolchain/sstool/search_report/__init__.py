"""The report of a search as one HTML page: the trials, the choice, its reasons and the measured speed-up."""

from __future__ import annotations

from sstool.search_report.page import write_report

__all__ = ["write_report"]
