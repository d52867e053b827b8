"""The gRPC service: handlers, conversion of messages, status codes, and interceptors."""
