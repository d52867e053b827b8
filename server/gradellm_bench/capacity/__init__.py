"""How many servers, GPUs and how much money a load takes, and what would break first: a model that measurements drive.

`measuring` times a scheduler's passes on this machine (`from_bench` takes them from a report of `gradellm bench`),
`costs` makes a model of them, `replica` runs a server's scheduler on that model instead of on a GPU, `trial` runs the
same requests on the real one, `planning` looks for the fewest servers that keep what was promised, `limits` counts what
else a fleet needs, and `document` writes docs/capacity.md's tables.
"""
