"""Quantization of an fp32 artifact's weights: scales, smoothing, what stays in fp32, and the loss of quality.

* `texts`: calibration text, on which everything is chosen, and held-out text, on which the result is judged.
* `statistics`: the sizes of the activations before each product.
* `formats`: integers and scales of one matrix.
* `precisions`: the formats that each data type uses.
* `smoothing`: factors that move large activation channels into the weights.
* `plan`: all of these for one model, and the graph that they give.
* `sensitivity`: the cost of each sublayer alone, and which sublayers get more bits.
* `quality`: KL divergence, agreement and perplexity, compared with another engine.
* `write`: the quantized artifact.
"""
