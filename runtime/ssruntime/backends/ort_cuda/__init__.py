"""Target `ort-cuda`: ONNX Runtime runs the graphs on an NVIDIA GPU."""
