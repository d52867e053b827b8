"""Text and tokens: reading prompts, encoding, chat templates, words, and incremental detokenisation."""
