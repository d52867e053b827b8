"""The arithmetic of the faithfulness metrics, without a model: see docs/methods/metrics.md.

Scores become retaining probabilities (`keep_probabilities.py`), uniforms and probabilities become masks (`masks.py`),
two next-token distributions a distance and a metric (`hellinger.py`), metrics at several pis a curve and its area
(`curves.py`), values of many prompts a mean with an interval (`statistics.py`). Insertion and deletion
(`insertion_deletion.py`) and agreement with human rationales (`rationale_agreement.py`) are further metrics.

Vectors over tokens are numpy, float64; distributions over the vocabulary are torch, float32 or better. In shapes, U is
the number of perturbable tokens, P of pis, N of random masks a pi, V the vocabulary.
"""
