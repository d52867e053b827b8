"""An MCP server: explanations as tools for agents and editors. Needs the extra `[mcp]`.

server.py    the tools, over `AsyncClient`
prompts.py   a question and its documents, as a prompt with named segments
results.py   what tools return: words with their sources, sentences with their documents, faithfulness
"""
