"""The fixtures of the server's tests."""

from __future__ import annotations

from server.conftest import engine, serving

__all__ = ["engine", "serving"]
