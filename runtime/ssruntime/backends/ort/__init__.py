"""The backend for ONNX Runtime's CPU kernels."""
