"""What drafting is worth: costs of passes, acceptance probabilities, and the draft length that pays best."""
