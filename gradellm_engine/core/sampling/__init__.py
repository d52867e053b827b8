"""What a request's sampling parameters do to logits, and which tokens end its completion."""
