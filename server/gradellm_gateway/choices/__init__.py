"""Several completions of one request (`n`): each is a call of its own over the same prompt, which is read once."""
