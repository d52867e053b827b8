"""Structured output: the fields of OpenAI and vLLM that constrain an answer."""
