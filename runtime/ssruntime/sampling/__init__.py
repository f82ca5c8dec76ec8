"""From logits to tokens: filters, and the noise that autoregressive and speculative sampling share."""
