"""In front of another engine: its OpenAI API passed on as it is, and explained by the gradellm server beside it."""
