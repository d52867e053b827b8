"""A local server in a child process."""
