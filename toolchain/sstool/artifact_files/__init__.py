"""An artifact's files: written, described, and published under their name in one step."""
