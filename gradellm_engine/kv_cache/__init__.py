"""The KV cache: a pool of slots shared by all sequences, and the prefix cache."""
