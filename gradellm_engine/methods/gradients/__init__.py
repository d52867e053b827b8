"""Post-hoc methods from gradients of the target's logit by the embeddings or by a layer's output."""
