"""Calls that explain a completion while another engine writes it."""
