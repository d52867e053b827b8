"""The KV cache: a pool of slots for all sequences, and the prefix cache."""
