"""The methods that explain a token, a file each, behind one small interface.

`registry.METHODS` lists them. A method is one of two kinds:

- within a pass (`gradellm_engine.attribution.in_pass`): its scores are made of what attention computes in the
  explained token's own pass, so that it is offered while text is generated;
- after the fact (`post_hoc.py`): it runs the model over whole sequences of its own, forward, backward or changed, for
  a completion that exists.
"""
