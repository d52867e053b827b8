"""Observability: metrics, logs, traces and statistics of calls."""
