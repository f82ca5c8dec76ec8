"""Every supported family, proven on random checkpoints."""
