"""The command line: each command parses options, calls the library and prints; only `main` handles errors."""
