"""Graphs: built from a checkpoint, read for their sublayers, and saved over one weights file."""
