"""The self-test: what is proven of each target on the machine at hand."""
