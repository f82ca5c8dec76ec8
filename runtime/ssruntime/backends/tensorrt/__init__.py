"""The backend of graphs of standard operators: TensorRT, or a stand-in on the processor."""
