"""Replacements for layers of Transformers' modules: linear, RMSNorm and rotary embedding."""
