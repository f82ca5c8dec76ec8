"""The costs of an engine's passes on this host: measured once, and kept beside the packed weights."""
