"""Checkpoints whose weights are packed integers of 4 bits: GPTQ and AWQ.

* `layout`: which format a checkpoint has, from its config.
* `unpack`: integers, zero points and scales of one matrix.
* `folders`: the checkpoint again, with floating-point numbers.
"""
