"""The gRPC service over the engine: `python -m gradellm_server --help`."""
