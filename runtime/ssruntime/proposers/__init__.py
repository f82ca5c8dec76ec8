"""Proposers: the sources of draft tokens."""
