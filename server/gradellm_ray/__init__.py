"""Large evaluations on a Ray cluster: `python -m gradellm_ray`, one engine per actor.

evaluator.py   an engine that evaluates examples one after the other; does not import Ray
actor.py       the evaluator as a Ray Data actor: a batch of rows in, a batch of rows out
job.py         a pool of actors, and the examples that it evaluates
__main__.py    `gradellm evaluate` with actors instead of servers: the same flags, run spec, results file and tables
"""
