"""Finds and reads a Hugging Face checkpoint, on disk or on the hub; refuses one that cannot be exported."""
