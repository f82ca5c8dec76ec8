"""Warm starts: candidates that somebody has a reason for, which a search tries before Ax proposes any."""
