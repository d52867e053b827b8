"""Chat templates with tools, in the forms of well-known models."""

from __future__ import annotations

_TURNS = """
{%- for message in messages %}
{%- if message.role == "tool" %}
{{- "<|im_start|>user\\n<tool_response>\\n" ~ message.content ~ "\\n</tool_response><|im_end|>\\n" }}
{%- else %}
{{- "<|im_start|>" ~ message.role ~ "\\n" }}
{{- message.content }}
{%- for call in message.tool_calls %}CALL
{%- endfor %}
{{- "<|im_end|>\\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{%- endif %}"""

HERMES = """{%- if tools %}{{- "<|im_start|>system\\n# Tools\\n<tools>" }}
{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\\n</tools>\\nWrite <tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <args>}\\n</tool_call><|im_end|>\\n" }}
{%- endif %}""" + _TURNS.replace(
    "CALL",
    """{{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}"""
    """{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}""",
)
"""As Qwen 2.5 and Hermes."""
LLAMA3 = """{%- if tools %}{{- "<|im_start|>system\\nRespond with {\\"name\\": ..., \\"parameters\\": ...}.\\n\\n" }}
{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}{{- "<|im_end|>\\n" }}
{%- endif %}""" + _TURNS.replace(
    "CALL",
    """{{- '{"name": "' ~ call.function.name ~ '", "parameters": ' }}"""
    """{{- call.function.arguments | tojson }}{{- '}' }}""",
)
"""As Llama 3."""
QWEN3_CODER = """{%- if tools %}{{- "<|im_start|>system\\n<tools>" }}
{%- for tool in tools %}{%- set tool = tool.function %}
{{- "\\n<function>\\n<name>" ~ tool.name ~ "</name>\\n<description>" ~ tool.description ~ "</description>" }}
{%- for name, fields in (tool.parameters.properties if tool.parameters else {}) | items %}
{{- "\\n<parameter>\\n<name>" ~ name ~ "</name>\\n<type>" ~ fields.type ~ "</type>\\n</parameter>" }}
{%- endfor %}{{- "\\n</function>" }}{%- endfor %}
{{- "\\n</tools>\\n<tool_call>\\n<function=example_function_name>\\n<|im_end|>\\n" }}
{%- endif %}""" + _TURNS.replace(
    "CALL",
    """{{- "\\n<tool_call>\\n<function=" ~ call.function.name ~ ">\\n" }}
{%- for name, value in call.function.arguments | items %}
{{- "<parameter=" ~ name ~ ">\\n" ~ value ~ "\\n</parameter>\\n" }}
{%- endfor %}{{- "</function>\\n</tool_call>" }}""",
)
"""As Qwen 3 Coder."""
MISTRAL = (
    """{%- if tools %}{{- "[AVAILABLE_TOOLS] " ~ (tools | tojson) ~ "[/AVAILABLE_TOOLS]" }}{%- endif %}"""
    + _TURNS.replace("CALL", """{{- '[TOOL_CALLS] [' }}{{- call.function | tojson }}{{- ']' }}""")
)
"""As Mistral before its tokenizer 11."""
SHORT = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    '{% for c in m.tool_calls %}<tool_call>{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}</tool_call>{% endfor %}{% endfor %}[assistant]"
)
"""Hermes' calls in few tokens, for tiny models."""
