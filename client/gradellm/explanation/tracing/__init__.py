"""Sources through the model's own words: attribution rows followed back through generated tokens to the prompt.

trace.py       Trace, and how it is made of an explanation
push_back.py   the arithmetic: shares pushed back through rows
trace_view.py  a trace as text
"""
