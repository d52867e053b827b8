"""Attribution methods computed inside the forward and backward pass: Grad-ELLM, Grad-SAM and attention weights."""
