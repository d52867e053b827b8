"""The attribution methods, one file each, behind one interface.

There are three kinds:

- in-pass methods (`gradellm_engine.attribution`), whose scores come from the attention of the explained token's own
  pass; they explain tokens while text is generated;
- post-hoc methods (this package), which run the model over whole sequences, forward, backward or perturbed, to explain
  a completion that exists: `gradients/`, `perturbation/` and `attention_rollout.py`;
- methods that do not run the model: `random.py`, whose function `scores` is called for each token.

To add a post-hoc method: write a file with a frozen dataclass of its switches (a subclass of `Switches` with a `name`)
and a generator `explain(model, switches)` that yields a `StepScores` for each step, and shares of its work in between
(`post_hoc.py`). Then add a row with its cost to `METHODS` in `registry.py`. ARCHITECTURE.md, "Where to add", has the
in-pass methods and the documents.
"""
