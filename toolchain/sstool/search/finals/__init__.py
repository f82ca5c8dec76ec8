"""The best candidates timed on the clock, and what the search concludes."""
