"""What the gateway tells of its requests."""
