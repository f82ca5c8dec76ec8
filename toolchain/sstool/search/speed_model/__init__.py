"""The speed model: times of draft steps and verify passes on this machine, measured once, then looked up."""
