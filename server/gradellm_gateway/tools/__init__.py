"""Tools and reasoning of chats: what a request asks for, and its answer in OpenAI's form."""
