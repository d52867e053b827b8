"""How calls reach a server: channels, credentials, load balancing, retries and resumed streams."""
