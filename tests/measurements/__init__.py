"""Figures that the READMEs show, as files, and the pictures drawn from them."""
