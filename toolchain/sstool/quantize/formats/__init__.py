"""How a matrix becomes integers and scales.

* `base`: what every format offers.
* `int8_columns`: 8 bits, a scale for each column; exact sums at every query length.
* `int4_blocks`: 4 bits, a scale and a zero point for each block of a column.
"""
