"""Helpers: random numbers, memory, threads, libraries' warnings, and torch's private interface."""
