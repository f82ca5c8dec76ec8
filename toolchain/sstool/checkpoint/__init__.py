"""A Hugging Face checkpoint: found on disk or on the hub, read, and refused with a reason where it cannot be exported."""
