"""Attention, forward and backward, with the products that attribution needs, on CPUs and GPUs."""
