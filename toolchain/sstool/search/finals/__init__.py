"""The end of a search: the best candidates timed head to head, and the conclusion."""
