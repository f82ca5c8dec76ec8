"""One page to look at: what a search tried, what it chose, why, and what that gives on this machine."""

from __future__ import annotations

from sstool.search_report.page import write_report

__all__ = ["write_report"]
