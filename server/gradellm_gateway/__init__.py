"""HTTP gateway: OpenAI's chat completions API with attribution, and a chat page, on top of the SDK."""
