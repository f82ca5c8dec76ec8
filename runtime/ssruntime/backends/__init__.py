"""Where the engines run: the interface the decode loop sees, and ONNX Runtime behind it."""
