"""Faithfulness of attributions: how the model's predictions change when tokens are perturbed by their scores.

`evaluation.py` runs an evaluation request; `metrics/` is the arithmetic, without a model. U is the set of perturbable
tokens, and in shapes its size.
"""
