"""An MCP server: explanations as tools for agents and editors. Needs the extra `[mcp]`.

server.py    the tools, over `AsyncClient`
results.py   what tools return: words with their sources, sentences with their documents, faithfulness
"""
