"""Layers with frozen weights that replace Transformers' own: linear, RMS norm and rotary embedding."""
