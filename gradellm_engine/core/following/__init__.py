"""Completions that another engine writes: their tokens while they come, and whether it runs the same model."""
