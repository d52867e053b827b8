"""The gRPC side: service, conversion of messages, status codes, authentication."""
