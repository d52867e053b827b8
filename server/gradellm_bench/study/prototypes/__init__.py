"""Candidate methods that cost a decode step, beside those that the engine has.

capture   the tensors of one explained step, and of replays of more positions
formulas  from these tensors to scores: pure functions, by name
table     paired differences from a method
"""
