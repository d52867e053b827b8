"""The gateway's routes, a file for each kind; `gradellm_gateway.app` puts them together."""
