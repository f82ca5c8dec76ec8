"""Rewrites of a decoder graph, one per file; each states what it requires and ensures, and edits in place."""
