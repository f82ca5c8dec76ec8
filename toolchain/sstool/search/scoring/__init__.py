"""The score of one candidate: what its draft proposes, how much is accepted, and the resulting speed."""
