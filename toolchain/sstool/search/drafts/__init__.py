"""Candidate skip sets, and the draft engines built from them."""
