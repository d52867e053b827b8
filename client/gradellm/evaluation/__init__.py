"""Evaluations: the report of one completion, and the data-set side of `gradellm evaluate`.

report.py        what an evaluation of one completion came to
figures.py       curves over the share of the text that is kept
presets.py       the paper's prompts and labels, as a table; a prompt of one's own
datasets.py      data files and data sets of the hub to examples; what is wrong with a row; sampling
run_spec.py      what is asked of every example, and what of the answer is kept; methods by name; the run's identity
runner.py        examples over servers that come and go
results_file.py  finished examples, one a line, so that a stopped run can be resumed
run_results.py   such a file taken up again
shards.py        a run in parts, and the parts as one run again
statistics.py    means over prompts, with intervals
tables/          the paper's tables, and what stands under them
"""
