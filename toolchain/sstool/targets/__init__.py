"""Targets: what is done last to a decoder graph so that one kind of engine can run it."""
