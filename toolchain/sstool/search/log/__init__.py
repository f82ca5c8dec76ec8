"""What a search writes down, and the folder of a running search."""
