"""What a command does from beginning to end: export a checkpoint, search a draft, replace a draft."""
