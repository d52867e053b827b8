"""Who may call, and how much: tokens, quotas, TLS, and files that are read again when they change."""
