"""Attention that keeps what its explanation needs: tensor formulas, and fused kernels for GPUs."""
