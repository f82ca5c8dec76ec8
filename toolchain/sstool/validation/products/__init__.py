"""Compares the products of quantized weights with the same arithmetic in PyTorch, on the same integers."""
