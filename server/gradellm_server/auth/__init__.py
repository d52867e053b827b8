"""Authentication: tokens, quotas, TLS, and reloading of their files."""
