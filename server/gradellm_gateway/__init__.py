"""HTTP for chat front ends, as OpenAI's clients speak it, and a chat page; over the SDK alone."""
