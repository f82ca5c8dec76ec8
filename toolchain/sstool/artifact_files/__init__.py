"""Writes an artifact's files, describes them, and publishes their folder in one step."""
