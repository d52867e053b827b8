"""Explanations: queries, words, files, plots, pages and verification."""
