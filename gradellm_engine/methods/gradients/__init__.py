"""Post-hoc methods that use gradients of a target token's score."""
