"""The commands from beginning to end: export a checkpoint, search for a draft, replace a draft."""
