"""Drivers: they run the passes that sequences want on a backend."""
