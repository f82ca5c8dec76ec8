"""The search for a skip set: which sublayers the draft leaves out so that the deployed engines give the most tokens per second."""
