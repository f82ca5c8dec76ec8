"""From logits to tokens: filters, and the noise that plain and speculative sampling share."""
