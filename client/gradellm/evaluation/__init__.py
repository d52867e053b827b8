"""Evaluations: the report of one completion, and runs of `gradellm evaluate` over data sets.

report.py          the report of an evaluation of one completion
figures.py         curves over the retention share
names.py           the paper's names of methods, metrics and data sets
presets.py         prompts, columns and labels of the paper's data sets; custom prompts
readers.py         records of data files and of the hub
datasets.py        from records to examples
examples.py        examples, and samples of them
run_spec.py        the settings of a run: methods, requests, records, and the run's identity
runner.py          evaluates examples on servers, with retries
results_file.py    results as JSON Lines, so that a stopped run can be resumed
results_schema.py  the schema of results files
run_results.py     the results of a run, read for tables
shards.py          parts of a run, and their merge
statistics.py      means over prompts, with intervals
tables/            the paper's tables and their notes
"""
