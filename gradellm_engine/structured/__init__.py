"""Structured output: completions that a JSON schema, a grammar, a regular expression or a list of texts constrains.

    1. `settings`       what a request asks for, with its sizes checked
    2. `schema_check`   a JSON schema's keywords and nesting, and the place of a keyword in it
    3. `grammar_source` the grammar of a request, in llguidance's form
    4. `compiler`       compiles it on a thread of its own, within limits, and keeps compiled grammars
    5. `state`          the tokens that are allowed next, computed beside the model's pass

Masks and grammars are llguidance's. Its limits count steps, not seconds, so that every rank of a tensor-parallel model
allows the same tokens.
"""
