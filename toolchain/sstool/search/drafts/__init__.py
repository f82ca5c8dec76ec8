"""Candidate skip sets, and the draft engines that are built from them."""
