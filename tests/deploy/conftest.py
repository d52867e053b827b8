"""A real server, as tests of the server have it."""

from __future__ import annotations

from server.conftest import engine, serving

__all__ = ["engine", "serving"]
