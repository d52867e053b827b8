"""What operators see of a server: metrics, logs, traces and statistics of calls."""
