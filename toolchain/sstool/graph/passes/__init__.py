"""Rewrites of a decoder graph, one a file; each states what it requires, what it ensures, and that it edits in place."""
