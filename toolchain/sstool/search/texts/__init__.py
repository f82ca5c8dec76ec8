"""Calibration texts: the model's own continuations of prompts, on which candidates are scored."""
