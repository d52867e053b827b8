"""The SDK's keywords and models to and from the messages of the wire contract."""
