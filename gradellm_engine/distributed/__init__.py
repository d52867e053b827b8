"""Tensor parallelism: the process group and sharded linear layers."""
