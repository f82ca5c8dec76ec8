"""The interface between decoding and the inference engines, and its implementation on ONNX Runtime."""
