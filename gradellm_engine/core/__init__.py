"""Requests: how they are built, scheduled and sampled, and the events they emit."""
