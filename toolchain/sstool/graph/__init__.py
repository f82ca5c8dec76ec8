"""Decoder graphs: built from a checkpoint, divided into sublayers, and rewritten pass by pass."""
