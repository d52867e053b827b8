"""Text and token ids: prompts, chat templates, incremental detokenization, words and segments."""
