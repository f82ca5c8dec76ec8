"""The command line: each command parses, calls the library and renders; errors and exit codes are in `main` alone."""
