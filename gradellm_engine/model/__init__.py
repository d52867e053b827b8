"""The model: loading and checking a checkpoint, and running batches of it."""
