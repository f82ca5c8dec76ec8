"""Target `tensorrt`: TensorRT and TensorRT-RTX run graphs of standard operators."""
