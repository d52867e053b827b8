"""Decode steps with less overhead: CUDA graphs, CPU traces and torch.compile."""
