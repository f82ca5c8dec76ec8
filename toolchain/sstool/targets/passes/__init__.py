"""Graph passes of single targets, one rewrite per file."""
