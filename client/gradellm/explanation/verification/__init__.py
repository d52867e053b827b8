"""Verification: a stored explanation is replayed on a server and compared with the result.

1. The server must host the model of the explanation, by its hashes; otherwise nothing is sent.
2. The prompt is reconstructed in the form that its tokens imply: messages, a text, or token ids. Text, offsets, roles
   and segments must equal the stored ones.
3. The completion is replayed teacher-forced by its token ids, with the resolved settings of the provenance. Tokens,
   log-probabilities and scores must equal the stored ones within the tolerance.
4. Every field that was not compared is listed in `Verdict.not_checked`.

verify.py      verifies one explanation with a client
replay.py      keywords of `attribute` that replay an explanation
prompt.py      reconstructs the prompt's input
comparison.py  compares tokens, log-probabilities and scores
generation.py  compares sampling settings and the end of the completion
provenance.py  compares model, versions and settings
fields.py      compares dataclasses field by field
verdict.py     the result
"""

from gradellm.explanation.verification.comparison import compared
from gradellm.explanation.verification.replay import replay_keywords
from gradellm.explanation.verification.verdict import Mismatch, NotChecked, Verdict
from gradellm.explanation.verification.verify import verified

__all__ = ["Mismatch", "NotChecked", "Verdict", "compared", "replay_keywords", "verified"]
