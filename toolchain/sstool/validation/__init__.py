"""Proof that an artifact computes its checkpoint's logits and that drafting changes no token."""
