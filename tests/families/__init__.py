"""Tests of every supported model family, on random checkpoints."""
