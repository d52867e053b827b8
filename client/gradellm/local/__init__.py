"""A server of one's own, as a child process."""
