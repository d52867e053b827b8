"""Large evaluations on a Ray cluster: `python -m gradellm_ray`, an engine an actor.

evaluator.py   one engine, one example after the other; knows nothing of Ray
actor.py       it as Ray Data has it: a batch of rows in, a batch of rows out
job.py         a pool of actors, and the examples through it
__main__.py    `gradellm evaluate` with actors in place of servers: the same flags, plan, results file and tables
"""
