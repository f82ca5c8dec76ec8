"""The log of a search: its records, how they are written and read, and the work folder that holds them."""
