"""The two-hop task and its small model."""
