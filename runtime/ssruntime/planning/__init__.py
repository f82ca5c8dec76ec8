"""What drafting is worth: costs of passes, odds of acceptance, and the draft length that pays best."""
