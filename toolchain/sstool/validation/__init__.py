"""Checks that an artifact computes its checkpoint's logits and that speculative decoding changes no token."""
