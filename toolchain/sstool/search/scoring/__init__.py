"""One candidate scored: what its draft proposes, how much is accepted, and what that is worth."""
