"""The data-set side of `gradellm evaluate`: what is asked, of which rows, and where the answers are kept.

presets.py       the paper's prompts and labels, as a table; a prompt of one's own
rows.py          data files and data sets of the hub to examples; what is wrong with a row; sampling
results_file.py  finished examples, one a line, so that a stopped run can be resumed
"""
