"""Attention passes: one forward pass over a batch, as the model's attention layers see it."""
