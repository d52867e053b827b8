"""Attribution methods whose scores are computed inside the forward and backward pass: Grad-ELLM and its relatives."""
