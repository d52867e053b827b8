"""Pictures: what a view of an explanation shows, made once for terminal, page, notebook and image files.

chips.py     the units of text that have a colour: words or tokens
picture.py   the numbers of one picture: colours, shares, what is folded. Pure functions
stream.py    the words of a stream with their scores, as they are completed
document.py  pictures as JSON, for pages to draw
"""
