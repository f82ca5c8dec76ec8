"""What draft steps and verify passes cost on this machine: measured once, then looked up."""
