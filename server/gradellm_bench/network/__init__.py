"""Servers under load, over the network: this project's, and vLLM where it is installed."""
