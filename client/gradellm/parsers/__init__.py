"""Parsers of answers: reasoning, text and calls of tools, a character at a time.

Every parser is a state machine over characters: how a text is cut into chunks changes nothing, and the time is linear
in the text's length. Positions are code points of the completion's text.
"""
