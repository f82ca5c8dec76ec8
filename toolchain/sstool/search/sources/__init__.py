"""Sources of candidates: the warm starts, each tried for a reason, and then Ax's suggestions."""
